"""FlashAttention on flat rows: what it is given, by a stand-in that computes each document by the definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prior.models import attention


def by_definition(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, starts_of_keys: torch.Tensor,
    longest: int, longest_key: int, *, dropout_p: float, softmax_scale: float | None, causal: bool,
) -> torch.Tensor:  # fmt: skip
    """``flash_attn_varlen_func`` as its documentation says: (tokens, heads, width), one softmax per query and head."""
    assert starts.dtype == torch.int32 and torch.equal(starts, starts_of_keys) and dropout_p == 0.0
    sizes = torch.diff(starts).tolist()
    assert starts[0] == 0 and sum(sizes) == len(q) and longest == longest_key == max(sizes)
    shared = q.shape[1] // k.shape[1]
    result = torch.empty_like(q)
    for token in range(len(q)):
        document = int((starts <= token).sum()) - 1
        seen = slice(int(starts[document]), token + 1 if causal else int(starts[document + 1]))
        for head in range(q.shape[1]):
            scores = k[seen, head // shared] @ q[token, head] * (softmax_scale or q.shape[-1] ** -0.5)
            result[token, head] = torch.softmax(scores, 0) @ v[seen, head // shared]
    return result


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("heads", "shared"), [(4, 1), (6, 3)])
def test_flat_attention_equals_attention_on_the_grid(
    heads: int, shared: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    lengths = [3, 1, 7, 2]
    query, key, value = (torch.randn(1, count, sum(lengths), 8) for count in (heads, heads // shared, heads // shared))
    layout = attention.document_layout(lengths)
    module: Any = SimpleNamespace(num_key_value_groups=shared, is_causal=True, training=False)

    def output() -> torch.Tensor:
        layout.pop("position_ids", None)
        return attention.packed_attention(module, query, key, value, None, **layout, dropout=0.0, scaling=scaling)[0]

    on_the_grid = output()
    monkeypatch.setattr(attention, "flash_kernel", lambda states: by_definition)
    torch.testing.assert_close(output(), on_the_grid, atol=1e-6, rtol=1e-5)


def test_a_model_gives_the_same_either_way(lvlm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the model's layers, so that what they pass on is what the kernel needs."""
    attention.pack(lvlm.model)
    lengths = [5, 2, 4]
    row = {"input_ids": torch.randint(10, 300, (1, sum(lengths))), **attention.document_layout(lengths)}
    with torch.no_grad():
        on_the_grid = lvlm.model.eval()(**row, use_cache=False).logits
        monkeypatch.setattr(attention, "flash_kernel", lambda states: by_definition)
        torch.testing.assert_close(lvlm.model(**row, use_cache=False).logits, on_the_grid, atol=1e-5, rtol=1e-5)


def test_the_kernel_is_for_half_precision_on_a_gpu() -> None:
    assert attention.flash_kernel(torch.zeros(1, dtype=torch.bfloat16)) is None
