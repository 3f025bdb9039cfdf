"""Where the weights of a model are: in every process or in the first alone, and how they become a folder again.

Under FSDP each process holds a share of the weights while it trains. Before that the first process holds all of them;
those of the others have shapes but no memory, and are filled by the first when `prior.training.train` begins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prior import processes

Model = TypeVar("Model", bound=PreTrainedModel)


def held_here(fsdp: bool) -> bool:
    """Whether this process holds weights before training."""
    return processes.first() or not fsdp


def hollow(make: Callable[[], Model]) -> Model:
    """What `make` makes, with float32 weights that take up no memory until something is written to them."""
    from accelerate import init_empty_weights

    # Buffers are no part of what the first process sends, so they have to be right.
    with init_empty_weights(include_buffers=False):
        model = make()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # FSDP tells parameters apart by their addresses, of which those on ``meta`` have none.
            empty = torch.empty(parameter.shape, dtype=torch.float32)
            setattr(module, name, torch.nn.Parameter(empty, parameter.requires_grad))
    model.tie_weights()
    return model


def load_llm(folder: Path, *, fsdp: bool = False) -> PreTrainedModel:
    """A causal LM in float32 from a Hugging Face folder; with `fsdp` only the first process reads its weights."""
    if held_here(fsdp):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return hollow(lambda: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)))


def release(module: torch.nn.Module) -> None:
    """Give back the memory of a module's weights; to be followed by `adopt`."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def adopt(module: torch.nn.Module, source: torch.nn.Module) -> None:
    """Share the weights of an equal module instead of copying them."""
    given = dict(source.named_parameters())
    for name, parameter in module.named_parameters():
        parameter.data = given.pop(name).data
    assert not given, f"no place for {sorted(given)}"


def gather(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All weights of a model, sharded or not, on the CPU of the first process; all have to call it."""
    state: dict[str, torch.Tensor] = {}
    for name, share in model.state_dict().items():
        tensor = share.full_tensor() if isinstance(share, DTensor) else share
        if processes.first():
            state[name] = tensor.cpu()
    return state


def export(model: PreTrainedModel, folder: Path | None, dtype: torch.dtype = torch.float32) -> None:
    """Write a model, sharded or not, as an ordinary Hugging Face folder with weights of this precision.

    The first process writes, so the others need no folder; all have to call it.
    """
    state = gather(model)
    if folder is None or not processes.first():
        return
    # What FSDP and checkpointing wrapped around the layers is no part of the model.
    kind = type(model).__bases__[1] if isinstance(model, FSDPModule) else type(model)
    with torch.device("meta"):
        plain = kind(copy.deepcopy(model.config))
    state = {name: part.to(dtype) if part.is_floating_point() else part for name, part in state.items()}
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
