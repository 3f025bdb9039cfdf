"""What `test_distributed.py` has several processes do: torchrun starts this file once for all cases."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prior import config, models, processes
from prior.config.jobs import ParallelJob
from prior.documents import Documents, tokenize_captions
from prior.packing import Packer
from prior.scores import token_logprobs
from prior.state import private
from prior.training import train

# The last step has three rows, so that one of two processes has a row without labels.
RECIPE = config.Training(
    row_tokens=78, rows_per_step=4, learning_rate=1e-3, weight_decay=0.1, max_grad_norm=1.0, save_steps=2
)
HALF = RECIPE.model_copy(update={"bf16": True})
ARCHS, KINDS = ("hlvlm", "ulvlm"), ("ntp", "prior")
WAYS = {
    "ddp": ParallelJob(),
    "fsdp": ParallelJob(fsdp=True),
    "checkpointed": ParallelJob(fsdp=True, gradient_checkpointing=True),
}


class Killed(Exception):
    """A training ends as if it had been killed: nothing is saved at that moment."""


def documents(folder: Path) -> Documents:
    """The captions, with made-up scores."""
    from datasets import load_from_disk

    from prior.backbones import load_tokenizer

    made = tokenize_captions(load_from_disk(str(folder / "records")), load_tokenizer(folder / "tokenizer"))
    logprob = -np.random.default_rng(0).exponential(1.0, int(made.targets.lengths.sum())).astype(np.float32)
    return replace(made, ref_logprob=made.targets.beside(logprob))


def build(arch: str, folder: Path, fsdp: bool = False) -> Any:
    """A model; under FSDP the files that other processes than the first are given hold no weights."""
    from prior.backbones import load_tokenizer

    given = folder if processes.first() or not fsdp else folder / "without_weights"
    settings = getattr(config.Architectures(), arch)
    words = load_tokenizer(folder / "tokenizer")
    return models.build(arch, settings, words, given / "llm", given / "vision", seed=0, fsdp=fsdp)


def build_all_trained(folder: Path, fsdp: bool = False) -> Any:
    """An H-LVLM whose vision tower is trained as well, the last layer of which never has a gradient."""
    lvlm = build("hlvlm", folder, fsdp)
    lvlm.set_trainable(("projector", "llm", "vision"))
    return lvlm


def run(lvlm: Any, folder: Path, state: Path, kind: str = "ntp", **options: Any) -> int:
    """Train on all captions, twice through."""
    captions = documents(folder)
    packer = Packer(captions, 1, lvlm)
    order = np.tile(np.arange(len(captions)), 2)
    settings, objective = options.pop("settings", RECIPE), config.Objective(kind=kind)
    with private(state, keep=True):
        return train(
            lvlm.model, packer, order, settings, seed=0, state_dir=state, objective=objective, keep=True, **options
        )


def killed_after(step: int) -> Callable[[int], tuple[set[int], Callable[[int], None]]]:
    def kill(_: int) -> None:
        raise Killed

    return lambda steps: ({step}, kill)


@contextmanager
def gradients(model: torch.nn.Module) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The gradients of each step by the names of the parameters, whole."""
    found: list[dict[str, torch.Tensor]] = []

    def note(*_: Any) -> None:
        step = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
                step[name.replace("_checkpoint_wrapped_module.", "")] = whole.clone()
        found.append(step)

    hook = register_optimizer_step_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()


def first_step(lvlm: Any, folder: Path, state: Path, kind: str, **options: Any) -> dict[str, torch.Tensor]:
    """The gradients of the first of two steps, as they are before clipping."""
    settings = RECIPE.model_copy(update={"max_grad_norm": 1e9, "save_steps": 0})
    with gradients(lvlm.model) as found:
        run(lvlm, folder, state, kind, settings=settings, until=2, **options)
    return found[0]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for arch in ARCHS:
        for way, scaling in WAYS.items():
            for kind in KINDS:
                place = folder / f"{arch}-{kind}-{way}"
                lvlm = build(arch, folder, scaling.fsdp)
                grads = first_step(lvlm, folder, place, kind, scaling=scaling)
                units = [
                    type(part).__mro__[2].__name__ for part in lvlm.model.modules() if isinstance(part, FSDPModule)
                ]
                logprob = token_logprobs(lvlm.model.eval(), Packer(documents(folder), 1, lvlm), row_tokens=100)
                lvlm.save(place / "final" if processes.first() else None)
                if processes.first():
                    torch.save({"grads": grads, "logprob": logprob}, place / "found.pt")
                    (place / "units.json").write_text(json.dumps(units))
        half = folder / f"{arch}-half-precision"
        run(build(arch, folder, fsdp=True), folder, half, settings=HALF, until=1, scaling=WAYS["fsdp"])
    for way, scaling in WAYS.items():
        with suppress(Killed):
            lvlm = build_all_trained(folder, scaling.fsdp)
            run(lvlm, folder, folder / f"{way}-to-one", scaling=scaling, at_steps=killed_after(3))
        run(build_all_trained(folder, scaling.fsdp), folder, folder / f"one-to-{way}", scaling=scaling)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
