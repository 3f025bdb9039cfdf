"""Attention over a flat row of whole documents, each of which sees itself alone.

A packed row has shape (1, tokens). Around the attention product alone it is laid out as (documents, longest), so that
no pair of tokens from different documents is ever computed; everything else in the model stays flat and unpadded. Where
FlashAttention 2 is installed, the product is flat as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

NAME = "packed"


def document_layout(lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Where the tokens of a packed row lie in a (documents, longest) grid, and where the grid lies in the row.

    Returns
    -------
    dict with int64 tensors
        ``position_ids`` (1, tokens), restarting at each document; ``document_rows`` (documents, longest), the flat
        index of each grid cell (cells beyond a document's end point at its last token); ``document_cells`` (tokens,),
        the grid cell of each flat token.
    """
    sizes = torch.as_tensor(lengths)
    longest = int(sizes.max())
    offsets = torch.cumsum(sizes, 0) - sizes
    steps = torch.arange(longest)
    rows = offsets[:, None] + torch.minimum(steps[None], sizes[:, None] - 1)
    inside = steps[None] < sizes[:, None]
    cells = (torch.arange(len(sizes))[:, None] * longest + steps[None])[inside]
    positions = steps.expand(len(sizes), -1)[inside]
    return {"position_ids": positions[None], "document_rows": rows, "document_cells": cells}


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    document_rows: torch.Tensor | None = None,
    document_cells: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document of a packed row; shapes as in transformers' attention interface.

    Raises
    ------
    ValueError
        If the row's layout is missing, where documents would silently see each other.
    """
    if document_rows is None or document_cells is None:
        raise ValueError("packed attention needs the row's layout; call `unpack(model)` before generating")

    if flash := flash_kernel(value):
        return _flat_attention(flash, query, key, value, document_rows, **kwargs), None

    def grid(states: torch.Tensor) -> torch.Tensor:
        # (1, heads, tokens, width) -> (documents, heads, longest, width)
        return states[0][:, document_rows].transpose(0, 1)

    # Cells beyond a document's end come last, so causality alone keeps real tokens from seeing them.
    output, _ = sdpa_attention_forward(
        module, grid(query), grid(key), grid(value), None, **{**kwargs, "is_causal": True}
    )
    # (documents, longest, heads, width) -> (1, tokens, heads, width)
    return output.flatten(0, 1)[document_cells][None], None


def flash_kernel(states: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """``flash_attn_varlen_func`` where it is installed and takes these states, which are then in half precision."""
    if states.is_cuda and states.dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available():
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found, unused-ignore]

        return flash_attn_varlen_func
    return None


def _flat_attention(
    flash: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    document_rows: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """The same by a kernel that takes flat rows, and key and value heads that several query heads share."""
    # Rotary positions are in single precision under autocast.
    q, k, v = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    starts = torch.nn.functional.pad(document_rows[:, 0], (0, 1), value=len(q)).int()
    longest = document_rows.shape[1]
    return flash(q, k, v, starts, starts, longest, longest, dropout_p=dropout, softmax_scale=scaling, causal=True)[None]


AttentionInterface.register(NAME, packed_attention)


def pack(model: PreTrainedModel) -> None:
    """Let the language model of `model` attend within the documents of packed rows."""
    language_model(model).set_attn_implementation(NAME)
    model.config.use_cache = False


def unpack(model: PreTrainedModel) -> None:
    """Give the language model of `model` ordinary attention back, for padded batches and generation."""
    language_model(model).set_attn_implementation("sdpa")
    model.config.use_cache = True


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """The text transformer inside a causal LM, an H-LVLM or a U-LVLM."""
    inner = getattr(model, "model", model)
    return getattr(inner, "language_model", inner)
