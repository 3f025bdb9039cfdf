"""The kinds of values that settings have: token counts, names, paths, sources, and the base class of all settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag


def parse_tokens(text: str | int) -> int:
    """Read a token count such as ``40k``, ``1.5M`` or ``7000``.

    Raises
    ------
    ValueError
        If the text is not a positive number with an optional ``k``, ``M`` or ``B``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", str(text))
    count = int(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]) if match else 0
    if count <= 0:
        raise ValueError(f"'{text}' is not a number of tokens; write it as 40k, 1.5M or 7000")
    return count


def _scale(value: Any) -> str:
    parse_tokens(value)
    return str(value)


def _expand(value: Any) -> Any:
    """Replace environment variables in a path; an unset one is the user's to set."""
    if not isinstance(value, str):
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    if unset := re.search(r"\$\{?(\w+)\}?", expanded):
        raise ValueError(f"the environment variable {unset[1]} is not set; export it as the path of your folder")
    return expanded


def _source(value: str) -> str:
    """A folder must be there; a hub id, ``name`` or ``organisation/name``, is not looked up here."""
    local = value.startswith((".", "/", "~")) or value.count("/") > 1 or Path(value).exists()
    if local and not Path(value).is_dir():
        raise ValueError(f"there is no folder '{value}'; give one that exists, or a hub id such as organisation/name")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
        raise ValueError(
            f"'{value}' cannot be a name; use letters, digits and . _ + - and begin with a letter or digit"
        )
    return value


def _form(value: Any) -> str:
    return "<settings>" if isinstance(value, dict | BaseModel) else "<source>"


def backbone_form(value: Any) -> str:
    has_hub = "hub" in value if isinstance(value, dict) else hasattr(value, "hub")
    return "<hub>" if has_hub and not isinstance(value, str) else _form(value)


def kind_tag(value: Any) -> str:
    return f"<{value.get('kind') if isinstance(value, dict) else getattr(value, 'kind', None)}>"


Scale = Annotated[str, BeforeValidator(_scale)]
FolderPath = Annotated[str, BeforeValidator(_expand), Field(min_length=1)]
Name = Annotated[str, AfterValidator(_name)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
Epochs = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Part = TypeVar("Part", bound=str)
Trainable = Annotated[tuple[Part, ...], Field(min_length=1, strict=False)]

# Where a value may have several shapes, a tag in angle brackets tells them apart: `prior.presets` leaves it out of what
# it tells the user.
Own = TypeVar("Own")
Source = Annotated[FolderPath, AfterValidator(_source)]
Sourced = Annotated[Annotated[Source, Tag("<source>")] | Annotated[Own, Tag("<settings>")], Discriminator(_form)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values do not change after loading.

    A value has the type that is asked for (`yes` is not 1), and every number is finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
