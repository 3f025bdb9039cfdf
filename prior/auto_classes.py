"""Lets transformers' auto classes know the U-LVLM as soon as they are imported, without importing them.

transformers has a call for classes of other packages, ``AutoConfig.register``, but no entry point that it would look up
by itself. Making that call on ``import prior`` would load torch and transformers, seconds of work, in each of the many
jobs that need neither. So it is made once transformers has loaded the module that holds `AutoConfig`; only the
configuration is registered then, which is light, and the model follows with the first configuration that is made.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
ULVLM_CONFIG = "prior.models.ulvlm_config"


class _ThenRegister(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        importlib.import_module(ULVLM_CONFIG)


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == AUTO_CONFIG else None
        if spec and spec.origin:
            spec.loader = _ThenRegister(name, spec.origin)
        return spec


def register_ulvlm() -> None:
    """Register the U-LVLM now if the auto classes have been imported already, else right after they are."""
    if AUTO_CONFIG in sys.modules:
        importlib.import_module(ULVLM_CONFIG)
    else:
        sys.meta_path.insert(0, _Finder)
