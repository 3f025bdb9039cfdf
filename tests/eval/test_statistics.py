"""Intervals, ratios, bootstrap and the verdict on a benchmark, each against an independent way to the same number."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.results import Score, scores
from eval.statistics import (
    Verdict,
    bootstrap_accuracy,
    mean_interval,
    paired_difference,
    relative_improvement,
    testable,
)
from prior.config import Statistics
from prior.errors import UserError
from tests.eval import synthetic

testable.__test__ = False  # a function of the project, not a test
SETTINGS = Statistics()


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9).filter(lambda values: np.std(values) > 1e-6))
def test_mean_interval_is_scipys_t_interval(values: list[float]) -> None:
    ours = mean_interval(values, 0.9)
    theirs = stats.t.interval(0.9, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_mean_interval_by_hand() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653: half-width 4.302653 / sqrt(3)
    interval = mean_interval([1.0, 2.0, 3.0], 0.95)
    assert interval.half_width == pytest.approx(2.484138, abs=1e-6)
    assert interval.n == 3


def test_one_seed_has_no_interval() -> None:
    one, base = pd.Series([2.0], index=[0]), pd.Series([1.0], index=[0])
    for interval in (
        mean_interval(one, 0.95),
        paired_difference(one, base, 0.95),
        relative_improvement(one, base, 0.95),
    ):
        assert np.isnan([interval.low, interval.high]).all()
    assert relative_improvement(one, base, 0.95).estimate == 1.0


def test_pairs_are_matched_by_seed_and_a_missing_one_is_named() -> None:
    ours, base = pd.Series({2: 3.0, 0: 1.0, 1: 2.5}), pd.Series({0: 0.5, 1: 1.0, 2: 2.0})
    expected = stats.ttest_rel([1.0, 2.5, 3.0], [0.5, 1.0, 2.0]).confidence_interval(0.95)
    assert paired_difference(ours, base, 0.95).low == pytest.approx(expected.low)
    with pytest.raises(UserError, match="seed2"):
        relative_improvement(ours.drop(2), base, 0.95)


@given(st.integers(0, 10_000), st.integers(3, 9))
def test_fieller_bounds_are_where_the_paired_t_test_turns(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x = 100 + 5 * rng.standard_normal(n)
    y = 1.2 * x + 4 * rng.standard_normal(n)
    interval = relative_improvement(pd.Series(y), pd.Series(x), 0.95)
    for bound in (interval.low, interval.high):
        assert stats.ttest_1samp(y - (1 + bound) * x, 0).pvalue == pytest.approx(0.05, rel=1e-6)
    assert interval.low < interval.estimate < interval.high


def test_fieller_is_unbounded_over_a_base_that_may_be_zero() -> None:
    interval = relative_improvement(pd.Series([1.0, 2.0, 3.0]), pd.Series([-1.0, 0.5, 1.0]), 0.95)
    assert np.isnan(interval.low) and np.isnan(interval.high)


def _answers(right: np.ndarray) -> pd.DataFrame:
    seeds, groups = right.shape
    index = pd.MultiIndex.from_product([range(seeds), map(str, range(groups))], names=["seed", "group"])
    return pd.DataFrame({"correct": right.ravel()}, index=index).reset_index()


def test_bootstrap_of_one_seed_is_the_binomial_interval() -> None:
    right = np.arange(400).reshape(1, -1) % 4 == 0
    interval = bootstrap_accuracy(_answers(right), SETTINGS)
    assert interval.estimate == 25.0
    half = 100 * 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert interval.low == pytest.approx(25 - half, abs=0.5)
    assert interval.high == pytest.approx(25 + half, abs=0.5)


def test_bootstrap_agrees_with_explicit_resampling_and_is_wider_for_seeds_that_differ() -> None:
    rng = np.random.default_rng(3)
    right = rng.random((4, 80)) < np.array([0.3, 0.5, 0.6, 0.8])[:, None]
    interval = bootstrap_accuracy(_answers(right), SETTINGS)
    draws = [
        100 * right[np.ix_(rng.integers(0, 4, 4), rng.integers(0, 80, 80))].mean() for _ in range(SETTINGS.resamples)
    ]
    assert interval.low == pytest.approx(np.quantile(draws, 0.025), abs=2)
    assert interval.high == pytest.approx(np.quantile(draws, 0.975), abs=2)
    assert interval == bootstrap_accuracy(_answers(right), SETTINGS)
    pooled = bootstrap_accuracy(_answers(right.reshape(1, -1)), SETTINGS)
    assert interval.half_width > 2 * pooled.half_width


def test_bootstrap_keeps_rotations_of_a_question_together() -> None:
    copies = _answers(np.arange(50).reshape(1, -1) % 2 == 0)
    four = pd.concat([copies] * 4)
    assert bootstrap_accuracy(four, SETTINGS) == bootstrap_accuracy(copies, SETTINGS)


def test_bootstrap_refuses_seeds_with_other_questions() -> None:
    answers = _answers(np.ones((2, 5), dtype=bool))
    with pytest.raises(UserError, match="different questions"):
        bootstrap_accuracy(answers.iloc[:-1], SETTINGS)


def test_a_benchmark_at_chance_is_not_testable_and_the_others_are() -> None:
    metrics = synthetic.metrics()
    columns = scores(metrics, synthetic.items(metrics))
    verdicts = {score.label: testable(metrics, score, SETTINGS) for score in columns}
    assert not any(verdict.testable for verdict in verdicts.pop("SEEDBench").values())
    assert all(verdict.testable for found in verdicts.values() for verdict in found.values())


@pytest.mark.parametrize("bar", ["always_yes", "without"])
def test_one_degenerate_row_within_ntps_interval_is_enough(bar: str) -> None:
    metrics = synthetic.metrics(archs=("hlvlm",))
    pope = Score("POPE (F1)", "POPE", "f1", 50, 100)
    assert testable(metrics, pope, SETTINGS)["hlvlm"].testable
    asked = (metrics.benchmark == "POPE") & (metrics.metric == "f1")
    row = asked & (
        (metrics.objective == bar) if bar != "without" else (metrics.picture == bar) & (metrics.arch == "hlvlm")
    )
    ntp = metrics[
        asked & (metrics.objective == "ntp") & (metrics.picture == "with") & (metrics.scale_tokens == 400_000)
    ]
    # Just below the mean: inside the interval although the mean itself is better.
    metrics.loc[row, "value"] = ntp.value.mean() - 0.01
    verdict = testable(metrics, pope, SETTINGS)["hlvlm"]
    assert not verdict.testable
    assert bar.replace("_", " ").replace("without", "without picture") in verdict.reason


def test_the_expectation_of_guessing_is_the_bar_and_lucky_draws_are_not() -> None:
    metrics = synthetic.metrics(archs=("hlvlm",))
    asked = (metrics.benchmark == "POPE") & (metrics.metric == "f1")
    ntp = metrics[
        asked & (metrics.objective == "ntp") & (metrics.picture == "with") & (metrics.scale_tokens == 400_000)
    ]
    at = ntp.value.mean() - 0.01

    def verdict(chance: float) -> Verdict:
        return testable(metrics, Score("POPE (F1)", "POPE", "f1", chance, 100), SETTINGS)["hlvlm"]

    metrics.loc[asked & metrics.objective.str.startswith("always"), "value"] = 0.0
    assert verdict(50).testable
    assert not verdict(at).testable and f"not above guessing ({at:.1f})" in verdict(at).reason
    metrics.loc[asked & (metrics.objective == "random"), "value"] = at
    assert verdict(50).testable
    # Where nobody knows what to expect, the draws have to do.
    assert not verdict(np.nan).testable and "random" in verdict(np.nan).reason


def test_without_an_interval_nothing_is_testable() -> None:
    metrics = synthetic.metrics(seeds=1)
    found = [testable(metrics, score, SETTINGS) for score in scores(metrics, synthetic.items(metrics))]
    assert all(
        "one seed" in verdict.reason and not verdict.testable for verdicts in found for verdict in verdicts.values()
    )
