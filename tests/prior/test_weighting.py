"""PRIOR's weights and the weighted loss against the paper's worked example, closed forms and properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prior.errors import UserError
from prior.loss import token_nll, weighted_ntp_loss
from prior.weighting import REGISTRY, Context, check_objective, objective, prior_weights

probabilities = st.lists(st.floats(0.0, 0.999), min_size=1, max_size=40)


def test_worked_example_of_the_authors_picture() -> None:
    losses = torch.tensor([0.68, 0.47, 0.71, 0.47, 0.65, 0.08])
    p_r = torch.tensor([0.01, 0.11, 0.47, 0.05, 0.48, 0.88])
    weights = prior_weights(p_r.log(), torch.zeros(6, dtype=torch.long))
    expected = torch.tensor([1.01, 0.63, 0.56, 0.66, 0.51, 0.01])
    torch.testing.assert_close(losses * weights, expected, atol=0.01, rtol=0)
    assert weights.dtype == torch.float32


@given(st.lists(probabilities, min_size=1, max_size=6), st.floats(0.25, 4.0), st.randoms())
def test_weights_equal_a_plain_loop_over_captions(captions: list[list[float]], alpha: float, random: object) -> None:
    """Interleaving the captions' tokens in any way changes nothing."""
    tokens = [(index, p) for index, caption in enumerate(captions) for p in caption]
    random.shuffle(tokens)  # type: ignore[attr-defined]
    logprob = torch.tensor([math.log(p) if p else -math.inf for _, p in tokens])
    index = torch.tensor([10 * index - 7 for index, _ in tokens])
    weights = prior_weights(logprob, index, alpha)
    for caption in range(len(captions)):
        places = [place for place, (owner, _) in enumerate(tokens) if owner == caption]
        raw = [(1 - tokens[place][1]) ** alpha for place in places]
        expected = [len(raw) * value / sum(raw) for value in raw]
        assert weights[places].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert float(weights[places].sum()) == pytest.approx(len(raw), rel=1e-4)


def test_a_caption_that_text_predicts_wholly_gets_ones() -> None:
    logprob = torch.tensor([0.0, 0.0, math.log(0.5), math.log(0.25)])
    weights = prior_weights(logprob, torch.tensor([0, 0, 1, 1]))
    assert weights.tolist() == pytest.approx([1.0, 1.0, 0.8, 1.2])


def test_alpha_zero_is_next_token_prediction() -> None:
    logprob = torch.log(torch.rand(30))
    assert prior_weights(logprob, torch.arange(30) // 7, alpha=0.0).tolist() == [1.0] * 30


@pytest.mark.parametrize(
    ("logprob", "index", "alpha"),
    [([0.5], [0], 1.0), ([math.nan], [0], 1.0), ([-1.0, -1.0], [0], 1.0), ([-1.0], [0], -1.0), ([-1.0], [0], math.nan)],
)
def test_what_is_not_a_log_probability_is_refused(logprob: list[float], index: list[int], alpha: float) -> None:
    with pytest.raises(ValueError, match="logs of probabilities|one log-probability|alpha"):
        prior_weights(torch.tensor(logprob), torch.tensor(index), alpha)


def test_loss_and_gradient_against_autograd_of_the_definition() -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 9, requires_grad=True)
    targets = torch.randint(9, (12,))
    weights = torch.rand(12)
    loss = weighted_ntp_loss(token_nll(logits, targets), weights, num_tokens=20)
    expected = -(weights * logits.log_softmax(-1)[torch.arange(12), targets]).sum() / 20
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


def test_an_objective_may_look_at_the_model_without_its_picture() -> None:
    """The interface carries rivals such as CAL, which weigh by what the picture changes."""

    @objective("contrast")
    def contrast(context: Context, floor: float = 1.0) -> torch.Tensor:
        return (context.blind_nll() - context.token_nll).clamp(floor, 5.0)

    try:
        check_objective("mine", "contrast", {"floor": 0.5})
        nll = torch.tensor([1.0, 2.0])
        context = Context(nll, torch.zeros(2), torch.zeros(2), None, nll, lambda: torch.tensor([4.0, 2.1]))
        assert contrast(context, floor=0.5).tolist() == [3.0, 0.5]
        with pytest.raises(UserError, match="'contrast' has no such parameter; its parameters: floor"):
            check_objective("mine", "contrast", {"ceiling": 1.0})
        with pytest.raises(UserError, match="did you mean 'contrast'"):
            check_objective("mine", "contrats", {})
    finally:
        del REGISTRY["contrast"]
