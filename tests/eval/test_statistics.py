"""Intervals, ratios, sign flips and the verdict on a benchmark, each against an independent way to the same number."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.results import Score, scores
from eval.statistics import (
    DRAWS,
    FEWER,
    Verdict,
    crossed_accuracy,
    crossed_half_width,
    holm,
    mean_interval,
    over_seeds,
    paired_difference,
    relative_improvement,
    sign_flip,
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


def test_one_seed_has_the_t_interval_of_its_groups() -> None:
    right = np.arange(400).reshape(1, -1) % 4 == 0
    interval = crossed_accuracy(_answers(right), 0.95)
    theirs = stats.t.interval(0.95, 399, loc=25, scale=100 * stats.sem(right[0]))
    assert interval.estimate == 25.0
    assert (interval.low, interval.high) == pytest.approx(theirs)


def test_mean_squares_are_those_of_a_two_way_layout() -> None:
    """Variance and degrees of freedom by sums over the cells; never narrower than the interval of the seeds' means."""
    rng, wider = np.random.default_rng(3), []
    for apart in np.geomspace(0.1, 0.6, 12):
        cells = apart * np.array([[0], [1], [1], [2]]) + rng.normal(0, 0.6, (1, 30)) + rng.normal(0, 0.3, (4, 30))
        grand, seeds, groups = cells.mean(), cells.mean(axis=1), cells.mean(axis=0)
        ms_seeds = sum(30 * (mean - grand) ** 2 for mean in seeds) / 3
        ms_groups = sum(4 * (mean - grand) ** 2 for mean in groups) / 29
        rest = sum((cells[i, j] - seeds[i] - groups[j] + grand) ** 2 for i in range(4) for j in range(30)) / 87
        assert min(ms_seeds, ms_groups) > rest
        total = ms_seeds + ms_groups - rest
        freedom = total**2 / (ms_seeds**2 / 3 + ms_groups**2 / 29 + rest**2 / 87)
        both = stats.t.ppf(0.975, freedom) * np.sqrt(total / 120)
        alone = stats.t.ppf(0.975, 3) * stats.sem(seeds)
        wider.append(alone > both)
        assert crossed_half_width(cells, 0.95) == pytest.approx(max(both, alone))
    assert {True, False} == set(wider)


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.25])
def test_intervals_of_accuracies_cover_the_truth(seeds: int, spread: float) -> None:
    """Probit effects of seeds and questions as large as measured: `spread` 0.1 moves an accuracy by three percent."""
    rng, groups, trials = np.random.default_rng(11), 150, 2000
    truth = stats.norm.cdf(0.2 / np.sqrt(2 + spread**2))
    covered = 0
    for _ in range(trials):
        seed, question = spread * rng.standard_normal((seeds, 1)), rng.standard_normal((1, groups))
        cells = (rng.standard_normal((seeds, groups)) < 0.2 + seed + question).astype(float)
        covered += abs(cells.mean() - truth) <= crossed_half_width(cells - cells.mean(), 0.95)
    assert 0.93 <= covered / trials <= 0.98


def test_rotations_of_a_question_stay_together_and_weigh_by_their_number() -> None:
    copies = _answers(np.arange(50).reshape(1, -1) % 2 == 0)
    four = pd.concat([copies] * 4)
    assert crossed_accuracy(four, 0.95) == crossed_accuracy(copies, 0.95)
    uneven = pd.concat([copies, copies[copies.group == "0"]])
    assert crossed_accuracy(uneven, 0.95).estimate == pytest.approx(100 * 26 / 51)


def test_intervals_of_accuracies_end_at_what_is_possible() -> None:
    nearly = np.ones((3, 12), dtype=bool)
    nearly[0, 0] = False
    interval = crossed_accuracy(_answers(nearly), 0.95)
    assert 0 < interval.low < interval.estimate < interval.high == 100.0
    always = crossed_accuracy(_answers(np.ones((3, 12), dtype=bool)), 0.95)
    assert (always.low, always.high) == (100.0, 100.0)
    assert np.isnan(crossed_accuracy(_answers(np.ones((3, 1), dtype=bool)), 0.95).low)


def test_seeds_that_answered_other_questions_are_refused() -> None:
    answers = _answers(np.ones((2, 5), dtype=bool))
    with pytest.raises(UserError, match="different questions"):
        crossed_accuracy(answers.iloc[:-1], 0.95)


def test_a_seed_counts_once_however_many_units_it_has() -> None:
    index = pd.MultiIndex.from_product([["hlvlm", "ulvlm"], [1, 2, 3]], names=["arch", "seed"])
    units = pd.Series([1.0, 2.0, 4.0, 3.0, 2.0, 0.0], index=index)
    assert over_seeds(units, 0.95) == mean_interval([2.0, 2.0, 2.0], 0.95)
    with pytest.raises(ValueError, match="fewer units"):
        over_seeds(units.iloc[1:], 0.95)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_few_signs_are_all_flipped(values: list[float]) -> None:
    means = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=len(values))]
    slack = 1e-12 * np.abs(values).sum()
    p = sign_flip(values, 0)
    assert p == np.mean([mean >= abs(sum(values)) - slack for mean in means])
    assert p >= 2.0 ** (1 - len(values))
    assert sign_flip(np.negative(values), 0) == p


def test_many_signs_are_drawn_and_agree_with_another_implementation() -> None:
    values = np.random.default_rng(0).normal(0.35, 1, 40)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1)
    p = sign_flip(values, 0)
    assert p == pytest.approx(theirs.pvalue, abs=4 * np.sqrt(p / 20_000))
    assert p == sign_flip(values, 0)
    assert sign_flip(np.ones(40), 0) == 1 / (DRAWS + 1)
    assert sign_flip(np.ones(2000), 0) == 1 / (FEWER + 1)
    assert np.isnan(sign_flip([1.0], 0))


def test_sign_flips_reject_a_true_hypothesis_no_more_often_than_they_say() -> None:
    """Units of very different sizes, as differences at different scales are."""
    rng = np.random.default_rng(2)
    ps = [sign_flip(np.geomspace(0.1, 10, 9) * rng.standard_t(3, 9), 0) for _ in range(2000)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.047, abs=0.015)


def test_holm_by_hand() -> None:
    adjusted = holm([0.01, np.nan, 0.04, 0.03, 0.005])
    assert np.isnan(adjusted[1])
    assert adjusted[[0, 2, 3, 4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_stepping_down_rejects(ps: list[float]) -> None:
    adjusted = holm(ps)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
            if ps[place] * (len(ps) - rank) > level:
                break
            rejected.add(place)
        assert {place for place in range(len(ps)) if adjusted[place] <= level} == rejected


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
