"""Power laws: known exponents come back, outliers do not turn the line, and too few scales are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.scaling import fit_power_law, fits, quantities
from prior.config import Statistics
from prior.errors import UserError
from tests.eval import synthetic

SCALES = np.geomspace(1e4, 1e6, 5)


@settings(deadline=None, max_examples=40)
@given(A=st.floats(0.1, 1e3), b=st.floats(-0.5, 1.5), points=st.integers(3, 6))
def test_a_noise_free_power_law_comes_back(A: float, b: float, points: int) -> None:
    x = np.geomspace(4e4, 4e6, points)
    law = fit_power_law(x, A * x**-b)
    assert law.converged
    assert (law.A, law.b, law.E) == pytest.approx((A, b, 0.0), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(start=st.floats(0.3, 5.0), b=st.floats(0.15, 1.0), E=st.floats(0.2, 3.0))
def test_a_noise_free_power_law_with_floor_comes_back(start: float, b: float, E: float) -> None:
    A = start * SCALES[0] ** b
    law = fit_power_law(SCALES, E + A * SCALES**-b, "power_floor")
    assert law.converged
    assert (law.A, law.b, law.E) == pytest.approx((A, b, E), rel=1e-4)


def test_one_failed_run_does_not_turn_the_line() -> None:
    y = 12 * SCALES**-0.3
    y[3] *= 2
    robust = fit_power_law(SCALES, y).b
    squares = -np.polyfit(np.log(SCALES), np.log(y), 1)[0]
    assert abs(robust - 0.3) < 0.5 * abs(squares - 0.3)


def test_small_residuals_count_as_squares() -> None:
    x = np.tile(SCALES, 3)
    y = 12 * x**-0.3 * np.exp(0.01 * np.random.default_rng(0).uniform(-1, 1, len(x)))
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    law = fit_power_law(x, y)
    assert (law.A, law.b) == pytest.approx((np.exp(intercept), -slope), rel=1e-5)


def test_a_flat_curve_with_floor_has_no_exponent() -> None:
    assert not fit_power_law(SCALES, np.full(5, 0.75), "power_floor").converged


@pytest.mark.parametrize(("form", "given_", "needed"), [("power", 2, 3), ("power_floor", 4, 5)])
def test_too_few_scales_are_refused(form: str, given_: int, needed: int) -> None:
    # Two seeds at each scale do not make up for a missing scale.
    x = np.repeat(SCALES[:given_], 2)
    with pytest.raises(UserError, match=f"at least {needed} data scales, {given_} given"):
        fit_power_law(x, x**-0.2, form)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 6"):
        fit_power_law(SCALES, SCALES**-0.2, form, min_scales=6)  # type: ignore[arg-type]


def test_an_error_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="logarithm"):
        fit_power_law(SCALES[:3], np.array([0.2, 0.1, 0.0]))


def test_fits_recover_the_exponents_and_their_difference() -> None:
    records = fits(synthetic.metrics(noise=0.0), Statistics())
    by = {(r["kind"], r["arch"], r["objective"], r["quantity"], r["form"]): r for r in records}
    for arch in ("hlvlm", "ulvlm"):
        for quantity in ("loss", "loss_relevant", "loss_other"):
            for objective, b in synthetic.EXPONENTS.items():
                fit = by["fit", arch, objective, quantity, "power"]
                assert fit["exponent"]["estimate"] == pytest.approx(b, abs=1e-8)
                assert fit["mean_fit"]["b"] == pytest.approx(b, abs=1e-8)
                assert "at least 5" in by["fit", arch, objective, quantity, "power_floor"]["refused"]
            gap = by["difference", arch, "prior", quantity, "power"]["exponent"]
            assert gap["estimate"] == pytest.approx(0.06, abs=1e-8)


def test_the_exponents_interval_is_over_seeds_and_the_difference_is_paired() -> None:
    records = fits(synthetic.metrics(archs=("hlvlm",), benchmarks=(), noise=0.03), Statistics(confidence=0.9))
    arms = {
        r["objective"]: r for r in records if r["quantity"] == "loss" and r["form"] == "power" and r["kind"] == "fit"
    }
    b = {objective: [seed["b"] for seed in fit["seeds"]] for objective, fit in arms.items()}
    low, high = stats.t.interval(0.9, 2, loc=np.mean(b["ntp"]), scale=stats.sem(b["ntp"]))
    assert (arms["ntp"]["exponent"]["low"], arms["ntp"]["exponent"]["high"]) == pytest.approx((low, high))
    paired = stats.ttest_rel(b["prior"], b["ntp"]).confidence_interval(0.9)
    gap = next(r for r in records if r["kind"] == "difference" and r["quantity"] == "loss")["exponent"]
    assert (gap["low"], gap["high"]) == pytest.approx((paired.low, paired.high))


def test_the_largest_deviation_tells_a_bent_curve_from_a_power_law() -> None:
    metrics = synthetic.metrics(archs=("hlvlm",), benchmarks=(), noise=0.0)
    bent = (metrics.scale_tokens == 120_000) & (metrics.objective == "ntp")
    metrics.loc[bent, "value"] *= 1.2
    arms = {
        r["objective"]: r
        for r in fits(metrics, Statistics())
        if (r["kind"], r["quantity"], r["form"]) == ("fit", "loss", "power")
    }
    assert arms["prior"]["largest_deviation_percent"] == pytest.approx(0, abs=1e-6)
    scales = np.array([40_000, 120_000, 400_000])
    last = metrics[(metrics.objective == "ntp") & (metrics.metric == "loss") & (metrics.picture == "with")]
    points = last[last.step == last.scale_tokens // 2000].groupby("scale_tokens").value.mean().loc[scales].to_numpy()
    law = fit_power_law(scales, points)
    worst = 100 * np.max(np.maximum(points / law(scales), law(scales) / points) - 1)
    assert arms["ntp"]["largest_deviation_percent"] == pytest.approx(worst) and worst > 5


def test_one_seed_says_so_and_the_records_are_json() -> None:
    records = fits(synthetic.metrics(seeds=1, benchmarks=()), Statistics())
    fitted = [record for record in records if record["form"] == "power"]
    assert all(record["exponent"]["low"] is None and "one seed" in record["refused"] for record in fitted)
    assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_benchmark_error_is_one_minus_accuracy() -> None:
    metrics = synthetic.metrics()
    found = quantities(metrics)
    rows = metrics[(metrics.metric == "accuracy") & (metrics.picture == "with")]
    run = "arch == 'ulvlm' and objective == 'prior' and scale_tokens == 120000 and seed == 1"
    accuracy = rows.query(run).set_index("benchmark").value
    assert found["error:POPE"].query(run).value.item() == pytest.approx(1 - accuracy["POPE"] / 100)
    assert found["error"].query(run).value.item() == pytest.approx((1 - accuracy / 100).mean())
