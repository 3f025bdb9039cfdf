"""Training logs in bins: jitter against closed forms and other implementations, interruptions, what is no log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.gather.training import BINS, LOSSES, MAD, binned, read_log, residuals, spikes, training
from prior.config import Preset
from prior.errors import UserError

numbers = st.floats(0.01, 100)


def log(steps: int, seed: int = 0, spans: bool = True) -> pd.DataFrame:
    """An imagined log: a loss that falls, norms that fall, a warm-up of 5 %."""
    rng, step = np.random.default_rng(seed), np.arange(1, steps + 1)
    fall = 2 * step**-0.1
    table = pd.DataFrame({"step": step, "loss": fall + 0.1 * rng.standard_normal(steps)})
    table["loss_relevant"] = fall + 0.2 * rng.standard_normal(steps) if spans else np.nan
    table["loss_other"] = fall + 0.05 * rng.standard_normal(steps) if spans else np.nan
    table["grad_norm"] = fall * np.exp(0.1 * rng.standard_normal(steps))
    table["lr"] = np.minimum(step / (0.05 * steps), 1.02 - step / steps / 50)
    return table.assign(tokens=380 * step, seconds=0.5 + 0.03 * step)


@given(numbers, numbers, st.integers(3, 40))
def test_a_line_leaves_no_residual(start: float, slope: float, count: int) -> None:
    off = residuals(start + slope * np.arange(count))
    assert np.isnan(off[[0, -1]]).all() and np.abs(off[1:-1]).max(initial=0) < 1e-9


def test_residuals_have_the_variance_of_the_noise() -> None:
    noise = np.random.default_rng(0).standard_normal(200_000)
    # Of one variance estimated from residuals that overlap the standard error is about 0.4 %.
    assert np.nanmean(residuals(3 * noise + np.linspace(0, 1, len(noise))) ** 2) == pytest.approx(9, rel=0.02)


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=60), st.integers(1, 30), st.floats(1e-3, 1e3))
def test_spikes_are_those_of_the_definition_at_any_scale(norms: list[float], half: int, scale: float) -> None:
    window = 2 * half + 1
    expected = []
    for place in range(len(norms)):
        start = max(0, min(place - half, len(norms) - window))
        around = norms[start : start + window] if len(norms) > window else norms
        middle = float(np.median(around))
        bar = middle + 5 * MAD * float(np.median([abs(norm - middle) for norm in around]))
        # Norms at the bar itself may be on either side of it after rounding.
        expected.append(None if np.isclose(norms[place], bar) else norms[place] > bar)
    for factor in (1.0, scale):
        found = spikes(factor * np.array(norms), window)
        assert all(want is None or want == got for want, got in zip(expected, found, strict=True))


def test_bins_hold_every_step_once() -> None:
    whole = log(523)
    table = binned(whole)
    assert len(table) == BINS and table.steps.sum() == 523
    assert table.first_step.tolist() == [1, *(table.last_step[:-1] + 1)] and table.last_step.iloc[-1] == 523
    for name in (*LOSSES, "grad_norm_mean"):
        of = whole["grad_norm" if name == "grad_norm_mean" else name]
        assert np.average(table[name], weights=table.steps) == pytest.approx(of.mean(), rel=1e-5)
    assert table.tokens.iloc[-1] == 380 * 523 and table.seconds.iloc[-1] == pytest.approx(0.5 + 0.03 * 523)
    assert table.step_seconds.to_numpy() == pytest.approx(0.03, rel=1e-3)
    # After the warm-up, and without the last step.
    assert table.judged.sum() == 523 - 1 - (whole.lr.argmax() + 1)
    assert np.average(table.loss_relevant_variance, weights=table.steps) == pytest.approx(0.04, rel=0.25)
    assert np.average(table.grad_norm_variance, weights=table.steps) == pytest.approx(0.01, rel=0.25)


def test_a_spike_is_counted_where_it_is_and_the_last_step_never() -> None:
    plain = log(400, seed=3)
    before, spiked = binned(plain), plain.copy()
    spiked.loc[[200, 399], "grad_norm"] = 50.0
    spiked.loc[399, "loss"] = 50.0
    after = binned(spiked)
    assert (after.spikes - before.spikes).tolist() == [int(index == 20) for index in range(BINS)]
    assert after.grad_norm_max[20] == 50 and after.grad_norm_max[39] == before.grad_norm_max[39]
    pd.testing.assert_series_equal(after.loss_variance, before.loss_variance)


def test_time_goes_on_after_an_interruption_and_unknown_relevance_stays_unknown() -> None:
    whole = log(60, spans=False)
    whole.loc[30:, "seconds"] = 0.2 + 0.03 * np.arange(30)
    table = binned(whole)
    assert table.seconds.is_monotonic_increasing
    assert table.seconds.iloc[-1] == pytest.approx((0.5 + 0.03 * 30) + (0.2 + 0.03 * 29))
    assert table[["loss_relevant", "loss_other_variance"]].isna().all(axis=None) and table.loss_variance.notna().all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 17])
def test_the_shortest_trainings_have_bins_too(steps: int) -> None:
    table = binned(log(steps))
    assert table.steps.sum() == steps and table.loss.notna().all() and table.spikes.sum() <= table.judged.sum() < steps


def test_the_logs_of_a_preset_and_what_is_no_log(tmp_path: Path) -> None:
    preset = Preset.model_validate({"name": "small", "scales": ["3k", "6k", "9k"], "seeds": 2})
    for run in preset.runs():
        path = tmp_path / run / "pretrain/log.jsonl"
        path.parent.mkdir(parents=True)
        lines = log(20, seed=len(run)).drop(columns=["loss_other"]).to_dict("records")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = training(preset, tmp_path)
    keys = table[["arch", "objective", "scale_tokens", "seed"]].drop_duplicates()
    assert len(keys) == len(preset.runs()) and set(keys.scale_tokens) == {3000, 6000, 9000}
    assert table.groupby(["arch", "objective", "scale_tokens", "seed"]).steps.sum().eq(20).all()
    for text in ("", "{", '{"step": "one"}\n', "[1]\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"log\.jsonl: .*train"):
            read_log(path)
    path.unlink()
    with pytest.raises(UserError, match=r"train that run"):
        training(preset, tmp_path)
