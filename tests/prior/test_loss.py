"""The losses of labels straight from the LM head, against logits and cross-entropy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from prior import loss
from prior.documents import tokenize_captions
from prior.loss import caption_nll, label_nll, token_nll
from prior.models.attention import pack
from prior.packing import Packer, model_inputs


def case(tokens: int = 23, vocabulary: int = 57, width: int = 8, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, dtype=dtype)
    weight = torch.randn(vocabulary, width, dtype=dtype)
    targets = torch.randint(vocabulary, (tokens,))
    # What reaches the losses from a weighted mean differs from token to token, and is zero for some.
    arriving = torch.rand(tokens) * (torch.arange(tokens) % 3 > 0)
    return hidden.requires_grad_(), weight.requires_grad_(), targets, arriving


def reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return token_nll(torch.nn.functional.linear(hidden, weight), targets)


@pytest.fixture(params=[1, 5 * 57, 2**25], ids=["a row at a time", "five rows at a time", "all at once"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_losses_and_gradients_are_those_of_cross_entropy(dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets, arriving = case(dtype=dtype)
    ours = label_nll(hidden, weight, targets)
    assert ours.dtype == torch.float32
    found = torch.autograd.grad(ours, (hidden, weight), arriving)
    plain = reference(hidden, weight, targets)
    expected = torch.autograd.grad(plain, (hidden, weight), arriving)
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * 5)
    with torch.no_grad():
        torch.testing.assert_close(label_nll(hidden, weight, targets), plain, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("chunk")
def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets, _ = case(tokens=6, vocabulary=57, width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: label_nll(*given, targets), (hidden, weight))


def test_sure_predictions_and_impossible_labels_stay_exact() -> None:
    """Losses from 0 to 1000 nats, where a softmax alone is 1 or 0."""
    weight = torch.tensor([[1000.0], [0.0], [-1000.0]])
    hidden = torch.ones(3, 1, requires_grad=True)
    nll = label_nll(hidden, weight, torch.tensor([0, 1, 2]))
    assert nll.tolist() == [0.0, 1000.0, 2000.0]
    nll.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == [0.0, 1000.0, 2000.0]


def test_autocast_and_frozen_parts_are_respected() -> None:
    hidden, weight, targets, arriving = case()
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = label_nll(hidden, weight, targets), reference(hidden, weight, targets)
    torch.testing.assert_close(ours, plain)
    for one, other in zip(
        torch.autograd.grad(ours, (hidden, weight), arriving),
        torch.autograd.grad(plain, (hidden, weight), arriving),
        strict=True,
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=5e-2)
    label_nll(hidden, weight.detach(), targets).sum().backward()
    assert hidden.grad is not None and weight.grad is None


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_gives_the_losses_of_its_logits(tied: bool, lvlm: Any, tokenizer: Any, records: Any) -> None:
    """Both architectures: every gradient, and a head that is as it was afterwards."""
    row = Packer(tokenize_captions(records, tokenizer), tokenizer.bos_token_id, lvlm).row(range(7))
    model = lvlm.model
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    pack(model)
    plain = copy.deepcopy(model)
    expected = token_nll(plain(**model_inputs(row), use_cache=False).logits, row["labels"])
    nll = caption_nll(model, model_inputs(row), row["labels"])
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
    weights = torch.rand(len(nll))
    (nll * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert model(**model_inputs(row), use_cache=False).logits.shape == (len(nll), model.lm_head.out_features)


def test_without_gradients_one_chunk_of_logits_is_all_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring a model that could learn: its weights want gradients, the block around it does not."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            result = function(*given, **(named or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 5 * 57)
    hidden, weight, targets, _ = case()
    sizes: list[int] = []
    with torch.no_grad(), Sizes():
        label_nll(hidden, weight, targets)
    assert max(size for size in sizes if size != weight.numel()) == 5 * 57
    with Sizes():
        label_nll(hidden, weight, targets)
    assert max(sizes) == 23 * 57


def test_a_row_without_labels_loses_nothing_and_teaches_nothing() -> None:
    hidden, weight, targets, arriving = case(tokens=0)
    nll = label_nll(hidden, weight, targets)
    nll.sum().backward()
    assert len(nll) == 0 and weight.grad is not None and not weight.grad.any()


def test_a_model_that_changes_its_logits_is_noticed(tokenizer: Any) -> None:
    """Gemma 2 caps its logits after the head; a head with a bias is no plain product."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=0.5, attn_implementation="eager"))
    ids = torch.arange(9)[None]
    inputs = {"input_ids": ids, "logits_to_keep": torch.ones(1, 9, dtype=torch.bool)}
    targets = torch.arange(9) + 1
    with torch.no_grad():
        expected = token_nll(model(ids).logits[0], targets)
        torch.testing.assert_close(caption_nll(model, inputs, targets), expected)
        model.config.final_logit_softcapping = None
        model.lm_head.bias = torch.nn.Parameter(torch.randn(50))
        expected = token_nll(model(ids).logits[0], targets)
        torch.testing.assert_close(caption_nll(model, inputs, targets), expected)
