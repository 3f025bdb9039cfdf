"""Scaling curves: known ones come back, few scales are refused, and intervals hold the truth as often as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval import style
from eval.bench.coverage import TARGET, simulate
from eval.fits.forms import aicc, fit_curve
from eval.fits.robust import accepted, critical_t, exponents, floor_t, odds_difference_t, odds_t, shared_exponents
from eval.outcomes import scaling
from eval.results import read_metrics, select
from eval.scaling import by_scale, find, fits, interval, quantities
from eval.statistics import mean_interval
from eval.study import Study
from prior.config import Statistics
from prior.errors import UserError
from tests.eval import synthetic

SCALES = np.geomspace(1e4, 1e6, 5)
TOKENS = (25_000, 50_000, 100_000, 200_000, 400_000)
PUBLISHED = Path(__file__).resolve().parents[2] / "results/published/study/metrics.csv"


def _study(metrics: pd.DataFrame) -> Study:
    # Nothing of a study but its metrics and fits is read here.
    return Study("imagined", Statistics(), metrics, pd.DataFrame(), None, fits(metrics, Statistics()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    """Few quantities of a real study."""
    metrics = read_metrics(PUBLISHED)
    return metrics[metrics.metric.isin(["loss_other", "chance"]) | (metrics.metric == "accuracy")].query(
        "benchmark in ('heldout', 'MMStar') and (arch == 'hlvlm' or arch == 'baseline')"
    )


@settings(deadline=None, max_examples=40)
@given(A=st.floats(0.1, 1e3), b=st.floats(-0.5, 1.5), points=st.integers(4, 6))
def test_a_noise_free_power_law_comes_back(A: float, b: float, points: int) -> None:
    x = np.geomspace(4e4, 4e6, points)
    law = fit_curve(x, A * x**-b)
    assert law.converged
    assert (law.A, law.b, law.E) == pytest.approx((A, b, 0.0), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(start=st.floats(0.3, 5.0), b=st.floats(0.15, 1.0), E=st.floats(0.2, 3.0))
def test_a_noise_free_power_law_with_floor_comes_back(start: float, b: float, E: float) -> None:
    A = start * SCALES[0] ** b
    law = fit_curve(SCALES, E + A * SCALES**-b, "power_floor")
    assert law.converged
    assert (law.A, law.b, law.E) == pytest.approx((A, b, E), rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(middle=st.floats(0.05, 5.0), b=st.floats(-0.3, 1.5), chance=st.sampled_from([0.0, 0.25, 0.5]))
def test_a_noise_free_power_law_of_the_odds_comes_back(middle: float, b: float, chance: float) -> None:
    odds = middle * (SCALES / 1e5) ** b
    accuracy = (chance + odds) / (1 + odds)
    law = fit_curve(SCALES, 1 - accuracy, "odds", chance)
    assert law.converged and law.b == pytest.approx(b, rel=1e-5, abs=1e-7)
    assert law(SCALES) == pytest.approx(1 - accuracy, rel=1e-6)
    assert 0 <= law(np.array([1e30]))[0] < law(np.array([1.0]))[0] <= 1 - chance or b < 1e-3


def test_one_failed_run_does_not_turn_the_line() -> None:
    y = 12 * SCALES**-0.3
    y[3] *= 2
    squares = -np.polyfit(np.log(SCALES), np.log(y), 1)[0]
    assert abs(fit_curve(SCALES, y).b - 0.3) < 0.5 * abs(squares - 0.3)


def test_small_residuals_count_as_squares() -> None:
    x = np.tile(SCALES, 3)
    y = 12 * x**-0.3 * np.exp(0.01 * np.random.default_rng(0).uniform(-1, 1, len(x)))
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    law = fit_curve(x, y)
    assert (law.A, law.b) == pytest.approx((np.exp(intercept), -slope), rel=1e-5)
    rss = np.sum((np.log(y) - intercept - slope * np.log(x)) ** 2)
    # AIC of a regression with two coefficients and a variance, and what Hurvich and Tsai add.
    assert aicc(law, 15) == pytest.approx(15 * np.log(rss / 15) + 6 + 24 / 11)


def test_a_flat_curve_with_floor_has_no_exponent() -> None:
    assert not fit_curve(SCALES, np.full(5, 0.75), "power_floor").converged


@pytest.mark.parametrize(("form", "given_", "needed"), [("power", 3, 4), ("odds", 3, 4), ("power_floor", 4, 5)])
def test_too_few_scales_are_refused(form: str, given_: int, needed: int) -> None:
    # Two seeds at each scale do not make up for a missing scale.
    x = np.repeat(SCALES[:given_], 2)
    with pytest.raises(UserError, match=f"at least {needed} data scales, {given_} given"):
        fit_curve(x, x**-0.2, form)  # type: ignore[arg-type]


def test_an_error_of_zero_and_an_unknown_chance_are_refused() -> None:
    with pytest.raises(UserError, match="logarithm"):
        fit_curve(SCALES[:4], np.array([0.3, 0.2, 0.1, 0.0]))
    with pytest.raises(UserError, match="guessing"):
        fit_curve(SCALES, SCALES**-0.1, "odds", float("nan"))


def test_fits_of_many_studies_at_once_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    y = 9 * SCALES**-0.2 * np.exp(0.08 * rng.standard_normal((4, 2, 8, 5)))
    b = exponents(SCALES, y)
    for place in np.ndindex(b.shape):
        assert b[place] == pytest.approx(fit_curve(SCALES, y[place]).b, abs=1e-6)
    shared = shared_exponents(SCALES, y[:, 0], y[:, 1])
    assert (np.minimum(b[:, 0], b[:, 1]) - 1e-9 <= shared).all() and (
        shared <= np.maximum(b[:, 0], b[:, 1]) + 1e-9
    ).all()
    alike = shared_exponents(SCALES, 3 * y[:, 0], y[:, 0])
    assert alike == pytest.approx(b[:, 0], abs=1e-8)


def test_a_score_test_of_small_noise_is_the_t_test_of_a_linear_contrast() -> None:
    rng = np.random.default_rng(4)
    noise = 1e-4 * rng.standard_normal((8, 5))
    log_x = np.log(SCALES / 1e5)
    curve = 1.5 + 0.5 * np.exp(-0.4 * log_x)
    share = (curve - 1.5) / curve
    nuisance = np.stack([share, -share * log_x], axis=1)
    contrast = 1 / curve - nuisance @ np.linalg.lstsq(nuisance, 1 / curve, rcond=None)[0]
    expected = stats.ttest_1samp(noise @ contrast, 0).statistic
    assert floor_t(SCALES, curve * np.exp(noise), np.array(1.5)) == pytest.approx(expected, rel=2e-3)


def test_score_tests_of_the_odds_reject_what_is_far_and_keep_what_is_true() -> None:
    rng = np.random.default_rng(5)
    odds = np.stack([0.8 * (SCALES / 1e5) ** b for b in (0.5, 0.3)])
    ours, base = (0.75 / (1 + odds))[:, None] * np.exp(0.01 * rng.standard_normal((2, 8, 5)))
    limit = critical_t(8, 0.999)
    tested = np.array([0.3, 0.5, 0.7])
    assert (np.abs(odds_t(SCALES, ours, 0.25, tested)) < limit).tolist() == [False, True, False]
    gaps = np.array([0.0, 0.2, 0.4])
    assert (np.abs(odds_difference_t(SCALES, ours, base, 0.25, gaps)) < limit).tolist() == [False, True, False]


def test_an_accepted_range_ends_where_the_statistic_is_critical() -> None:
    low, high = accepted(lambda value: 3 * (value - 1.2), np.linspace(0, 4, 23), 1.5)
    assert (low, high) == pytest.approx((0.7, 1.7), abs=1e-4)
    assert accepted(lambda value: value, np.linspace(0.5, 4, 23), 9.0) == (-np.inf, np.inf)
    assert np.isnan(accepted(lambda value: value, np.linspace(2, 4, 23), 1.0)).all()


def test_exponents_differences_and_ratios_come_back() -> None:
    records = fits(synthetic.metrics(scales=TOKENS, benchmarks=(), noise=0.0, points=1), Statistics())
    for arch in ("hlvlm", "ulvlm"):
        where = {"arch": arch, "quantity": "loss_relevant", "form": "power"}
        for objective, b in synthetic.EXPONENTS.items():
            fit = find(records, kind="fit", objective=objective, **where)
            assert fit and fit["exponent"]["estimate"] == pytest.approx(b, abs=1e-8)
            assert fit["mean_fit"]["b"] == pytest.approx(b, abs=1e-8)
            assert fit["leave_out"]["error_percent"] == pytest.approx(0, abs=1e-6)
            assert fit["leave_out"]["baseline_percent"] < -2
        gap, both, data = (
            find(records, kind=kind, objective="prior", **where) for kind in ("difference", "joint", "ratio")
        )
        assert gap and gap["exponent"]["estimate"] == pytest.approx(0.06, abs=1e-8)
        assert both and both["exponent"]["estimate"] == pytest.approx(0.23, abs=1e-3)
        # A·(r·x)^-0.2 = A·x^-0.26 at the largest scale.
        assert data and data["ratio"]["estimate"] == pytest.approx(400_000 ** (0.06 / 0.2)) and data["extrapolated"]


def test_intervals_are_over_seeds_and_paired() -> None:
    metrics = synthetic.metrics(scales=TOKENS, archs=("hlvlm",), benchmarks=(), noise=0.03, points=1)
    records = fits(metrics, Statistics(confidence=0.9))
    where = {"quantity": "loss", "form": "power"}
    b, last = {}, {}
    for objective in ("ntp", "prior"):
        fit = find(records, kind="fit", objective=objective, **where)
        assert fit
        b[objective] = np.array([seed["b"] for seed in fit["seeds"]])
        low, high = stats.t.interval(0.9, 2, loc=b[objective].mean(), scale=stats.sem(b[objective]))
        assert (fit["exponent"]["low"], fit["exponent"]["high"]) == pytest.approx((low, high))
        last[objective] = by_scale(select(quantities(metrics)["loss"], objective=objective))[400_000].to_numpy()
    paired = stats.ttest_rel(b["prior"], b["ntp"])
    span = paired.confidence_interval(0.9)
    gap = find(records, kind="difference", **where)
    assert gap and gap["p"] == pytest.approx(paired.pvalue)
    assert (gap["exponent"]["low"], gap["exponent"]["high"]) == pytest.approx((span.low, span.high), abs=1e-7)
    # Fieller: at each end of the ratio's interval a t test is just significant.
    data = find(records, kind="ratio", **where)
    assert data
    for end in ("low", "high"):
        left = np.log(last["ntp"] / last["prior"]) - np.log(data["ratio"][end]) * b["ntp"]
        assert stats.ttest_1samp(left, 0).pvalue == pytest.approx(0.1, abs=1e-6)


def test_a_floor_is_found_where_there_is_one_and_called_weak_where_there_is_none() -> None:
    metrics = synthetic.metrics(scales=TOKENS, archs=("hlvlm",), benchmarks=(), seeds=8, noise=0.0, points=1)
    rng = np.random.default_rng(6)
    tokens = metrics.scale_tokens.to_numpy(float)
    floored = np.where(metrics.metric == "loss_other", 1.4 + 40 * tokens**-0.4, 12 * tokens**-0.2)
    metrics["value"] = floored * np.exp(0.004 * rng.standard_normal(len(metrics)))
    records = fits(metrics, Statistics())
    where = {"kind": "fit", "objective": "ntp", "form": "power_floor"}
    there, none = (find(records, **where, quantity=key) for key in ("loss_other", "loss_relevant"))
    assert there and there["floor"]["identified"]
    assert 0 < there["floor"]["low"] < 1.4 < there["floor"]["high"] < 1.7
    assert there["aicc"] is None
    assert none and none["floor"]["low"] == 0 and "weakly identified" in none["floor"]["remark"]


def test_one_seed_three_scales_and_ablations_say_so_and_the_records_are_json() -> None:
    one = fits(synthetic.metrics(scales=TOKENS, seeds=1, benchmarks=("MMStar",), points=1), Statistics())
    fitted = [record for record in one if record["kind"] != "fit" or record["mean_fit"]]
    assert {record["refused"] for record in fitted if record["form"] == "power"} == {"one seed gives no interval"}
    assert all((record.get("exponent") or record["ratio"])["low"] is None for record in one)
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    metrics = synthetic.metrics(benchmarks=())
    ablation = metrics[(metrics.objective == "prior") & (metrics.scale_tokens == 400_000)].assign(objective="prior-a2")
    three = fits(pd.concat([metrics, ablation]), Statistics())
    assert {record["objective"] for record in three} == {"ntp", "prior"}
    assert all("data scales, 3 given" in record["refused"] for record in three)


def test_benchmark_error_is_one_minus_accuracy() -> None:
    metrics = synthetic.metrics()
    found = quantities(metrics)
    rows = metrics[(metrics.metric == "accuracy") & (metrics.picture == "with")]
    run = "arch == 'ulvlm' and objective == 'prior' and scale_tokens == 120000 and seed == 1"
    accuracy = rows.query(run).set_index("benchmark").value
    assert found["error:POPE"].query(run).value.item() == pytest.approx(1 - accuracy["POPE"] / 100)
    assert found["error"].query(run).value.item() == pytest.approx((1 - accuracy / 100).mean())


@pytest.fixture(scope="module")
def simulated(measured: pd.DataFrame) -> pd.DataFrame:
    return simulate(measured, studies=400)


def test_intervals_hold_the_truth_as_often_as_they_say(simulated: pd.DataFrame) -> None:
    assert set(simulated.statistic) == {"b", "difference", "shared", "ratio", "E"}
    assert {"power", "power_floor", "odds"} == set(simulated.form) and len(simulated) > 15
    # Seeds are fixed; bounds that one of a hundred such tables would leave.
    low, high = stats.binom.ppf([0.005 / len(simulated), 1 - 0.005 / len(simulated)], 400, 0.95) / 400
    assert simulated.coverage.between(low, high).all(), simulated[~simulated.coverage.between(low, high)]
    assert TARGET[0] < simulated.coverage.mean() < TARGET[1]


def test_an_interval_that_forgets_how_few_seeds_there_are_would_be_caught(
    measured: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normal(values: np.ndarray, confidence: float) -> object:
        return mean_interval(values, stats.t.cdf(stats.norm.ppf(0.975), len(values) - 1) * 2 - 1)

    monkeypatch.setattr("eval.bench.coverage.mean_interval", normal)
    found = simulate(measured, studies=400)
    assert not TARGET[0] < found[(found.form == "power") & (found.statistic == "b")].coverage.mean()


def test_the_result_says_in_words_why_there_are_no_curves() -> None:
    study = _study(synthetic.metrics(archs=("hlvlm",), benchmarks=("MMStar",)))
    table = scaling.table(study)
    (shown,) = scaling.show(table)
    assert shown.cells.to_numpy().tolist() == [["A·x^−b needs at least 4 data scales, 3 given; add scales"]]
    with style.context():
        figure = scaling.draw(table, study)
    assert all("3 given" in " ".join(text.get_text() for text in axes.texts) for axes in figure.axes)
    # Seeds and means are there all the same.
    assert all(len(axes.collections) == 2 and len(axes.lines) == 2 for axes in figure.axes)


def test_the_table_holds_what_the_records_hold_and_curves_go_beyond_the_scales(measured: pd.DataFrame) -> None:
    study = _study(measured)
    table = scaling.table(study)
    for what, key in (("difference", "exponent"), ("ratio", "ratio")):
        record = find(study.fits, kind=what, quantity="loss_other", form="power")
        assert record
        row = select(table, what=what, quantity="loss_other", form="power").iloc[0]
        found = interval(record[key])
        assert (row.estimate, row.low, row.high, row.seeds) == (found.estimate, found.low, found.high, found.n)
    titles = [shown.title for shown in scaling.show(table)]
    assert len(titles) == len(set(titles)) == 4
    with style.context():
        figure = scaling.draw(table, study)
    reach = [max(line.get_xdata().max() for line in axes.lines) for axes in figure.axes]
    assert reach == pytest.approx([4 * 400_000] * len(reach))
