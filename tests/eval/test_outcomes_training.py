"""Trajectories, the ablation of α, stability and cost: numbers by other ways, what is missing, one seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.outcomes import FIGURE_ENDINGS, TABLE_ENDINGS, alpha, cost, stability, trajectory, write_outcomes
from eval.results import METRIC_COLUMNS, averages, check_metrics, read_paper, scores, select
from eval.study import Missing, Study
from prior.config import Statistics
from prior.errors import UserError
from tests.eval import synthetic

ROOT = Path(__file__).resolve().parents[2]
ALPHAS = {"ntp": 0.0, "prior-a0.5": 0.5, "prior": 1.0, "prior-a2": 2.0}
NAMES = ["trajectory", "alpha", "stability", "cost"]
TOP = 400_000


def study(metrics: pd.DataFrame, stored: Mapping[str, pd.DataFrame] | None = None) -> Study:
    # Of the items only MME's categories are asked for.
    mme = metrics[(metrics.benchmark == "MME") & (metrics.seed == 0) & (metrics.picture == "with")]
    return Study(
        preset="imagined",
        settings=Statistics(),
        metrics=check_metrics(metrics),
        items=synthetic.items(mme, asked=10),
        paper=read_paper(ROOT / "results/reported"),
        alphas=ALPHAS,
        stored=stored or {},
    )


def one(table: pd.DataFrame, **where: Any) -> Any:
    found = select(table, **where)
    assert len(found) == 1, where
    return found.iloc[0]


def kept(
    metrics: pd.DataFrame, benchmark: str = "CaptionChoice", steps: tuple[int, ...] = (50, 100, 150)
) -> pd.DataFrame:
    """`metrics` with answers of checkpoints on the way to a benchmark that pre-trained models were asked."""
    rng = np.random.default_rng(7)
    last = metrics[(metrics.benchmark == benchmark) & (metrics.scale_tokens == TOP) & (metrics.picture == "with")]
    assert set(last.stage) == {"pretrain"}
    more = []
    for step in steps:
        early = last.assign(step=step)
        scored = early.metric.isin(["accuracy", "f1", "perception", "reasoning"])
        early.loc[scored, "value"] *= step / 200 * np.exp(0.1 * rng.standard_normal(scored.sum()))
        more.append(early)
    return pd.concat([metrics, *more], ignore_index=True)


def ablated(metrics: pd.DataFrame, **change: Any) -> pd.DataFrame:
    """`metrics` with PRIOR's rows at the largest scale under two more α: half and double the distance to NTP."""
    prior = select(metrics, scale_tokens=TOP, objective="prior")
    others = [prior.assign(objective="prior-a0.5", value=prior.value * 0.9, **change)]
    others += [prior.assign(objective="prior-a2", value=prior.value * 1.1, **change)]
    return pd.concat([metrics, *others], ignore_index=True)


def untuned(metrics: pd.DataFrame) -> pd.DataFrame:
    """All benchmarks asked of pre-trained models, as in a preset without tuning."""
    moved = metrics.stage == "tuned"
    steps = metrics.scale_tokens // 2000
    return metrics.assign(stage=metrics.stage.where(~moved, "pretrain"), step=metrics.step.where(~moved, steps))


def logs(seeds: int = 3) -> pd.DataFrame:
    """A training.parquet: PRIOR jitters exactly as much as NTP times four (relevant: a half), spikes twice as often."""
    rng, rows = np.random.default_rng(5), []
    for seed in range(seeds):
        for arch in ("hlvlm", "ulvlm"):
            for scale in (40_000, 120_000, TOP):
                noise = rng.uniform(0.5, 1.5, 10)
                for objective, more, less in (("ntp", 1, 1), ("prior", 4, 0.5), ("prior-a2", 9, 9)):
                    if objective == "prior-a2" and scale < TOP:
                        continue
                    for place in range(10):
                        key = (arch, objective, scale, seed, place, 10 * place + 1, 10 * place + 10, 10)
                        values = {
                            **{
                                "tokens": 1000 * (place + 1),
                                "seconds": place + 1.0,
                                "step_seconds": 0.1 * (1.1 if more > 1 else 1),
                            },
                            **{
                                "loss": 2.0,
                                "loss_relevant": 2.0,
                                "loss_other": 2.0,
                                "loss_variance": more * noise[place],
                            },
                            **{
                                "loss_relevant_variance": less * noise[place],
                                "loss_other_variance": more * noise[place],
                            },
                            **{"grad_norm": 1.0, "grad_norm_mean": 1.0, "grad_norm_max": 2.0},
                            **{
                                "grad_norm_variance": noise[place] / 100,
                                "judged": 10,
                                "spikes": (1 + (more > 1)) * (seed > 0),
                            },
                        }
                        names = ["arch", "objective", "scale_tokens", "seed", "bin", "first_step", "last_step", "steps"]
                        rows.append(dict(zip(names, key, strict=True)) | values)
    return pd.DataFrame(rows)


def costs(missing: bool = False) -> pd.DataFrame:
    """A costs.csv as it is read back."""
    rows = [
        {"stage": "corpus", "jobs": 3, "seconds": 30.0, "cpu_seconds": 20.0, "max_rss_mb": 100.0},
        {
            "stage": "reference",
            "jobs": 1,
            "tokens": 500,
            "flops": 3e12,
            "seconds": 10.0,
            "cpu_seconds": 12.0,
            "max_rss_mb": 200.0,
        },
        {
            "stage": "scores",
            "jobs": 2,
            "tokens": 100,
            "flops": 1e12,
            "seconds": 5.0,
            "cpu_seconds": 3.0,
            "max_rss_mb": 300.0,
        },
    ]
    for arch in ("hlvlm", "ulvlm"):
        for objective, scale in (("ntp", TOP), ("prior", TOP), ("prior", 40_000), ("prior-a2", TOP)):
            size = scale / TOP
            rows.append(
                {"stage": "pretrain", "arch": arch, "objective": objective, "scale_tokens": scale, "jobs": 1, "runs": 4}
                | {"tokens": 4 * scale, "positions": 8 * scale, "flops": 8e12 * size, "seconds": 60 * size}
                | {"cpu_seconds": 40 * size, "max_rss_mb": 700.0}
            )
    table = pd.DataFrame(rows).assign(gpus=0, remark=np.nan)
    if missing:
        measured = ["seconds", "cpu_seconds", "max_rss_mb"]
        table.loc[4, measured] = np.nan
        table["remark"] = table.remark.astype(object)
        table.loc[4, "remark"] = "1 of 1 timings are missing"
    return table


@pytest.fixture(scope="module")
def metrics() -> pd.DataFrame:
    return synthetic.metrics(benchmarks=("CaptionChoice",))


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    """Every benchmark of a preset without tuning, three of them asked on the way."""
    table = untuned(synthetic.metrics())
    for name in ("MME", "POPE", "MMStar"):
        table = kept(table, name)
    return table


def test_a_trajectory_is_the_mean_of_its_seeds_at_each_step(metrics: pd.DataFrame) -> None:
    asked = kept(metrics)
    table = trajectory.table(study(asked))
    assert set(table[table.arch != "paper"].quantity) == {"CaptionChoice", "loss", "loss_relevant", "loss_other"}
    where = {"arch": "ulvlm", "objective": "prior"}
    curve = select(table, quantity="CaptionChoice", kind="score", **where)
    assert curve.step.tolist() == [50, 100, 150, 200] and curve.point.tolist() == [1, 2, 3, 4]
    rows = select(asked, scale_tokens=TOP, benchmark="CaptionChoice", metric="accuracy", picture="with", **where)
    for step, value, low in zip(curve.step, curve.value, curve.low, strict=True):
        own = select(rows, step=step).value
        expected = stats.t.interval(0.95, 2, own.mean(), stats.sem(own))
        assert (value, low) == pytest.approx((own.mean(), expected[0]))


def test_averages_are_those_of_each_step_and_best_meets_best(whole: pd.DataFrame) -> None:
    table = trajectory.table(study(whole))
    early = select(whole, scale_tokens=TOP, picture="with", step=100, arch="hlvlm", objective="prior")
    early = early[early.benchmark.isin(["MME", "POPE", "MMStar"])]
    expected = averages(early, scores(early, synthetic.items(early, asked=10)))
    for kind in ("raw", "corrected"):
        point = one(table, arch="hlvlm", objective="prior", quantity=kind, kind="average", point=2)
        assert point.value == pytest.approx(expected[kind].mean())
    # Only what was asked on the way: neither SEEDBench nor MMBench.
    assert not {"SEEDBench", "MMBench"} & set(table.quantity)
    rows = select(whole, scale_tokens=TOP, benchmark="POPE", metric="f1", picture="with", arch="hlvlm")
    best = rows.groupby(["objective", "seed"]).value.max().groupby("objective").mean()
    gain = one(table, arch="hlvlm", quantity="POPE (F1)", kind="best")
    assert gain.value == pytest.approx(100 * (best["prior"] / best["ntp"] - 1)) and gain.low < gain.value < gain.high
    assert one(table, arch="paper", kind="best").value == pytest.approx(100 * (221.9 / 186.8 - 1))


def test_a_trajectory_that_a_seed_lacks_a_step_of_is_refused(metrics: pd.DataFrame) -> None:
    asked = kept(metrics)
    gone = (asked.step == 100) & (asked.seed == 1) & (asked.arch == "hlvlm") & (asked.benchmark == "CaptionChoice")
    with pytest.raises(UserError, match=r"hlvlm/ntp CaptionChoice: seed1 was measured at 3 steps and another at 4"):
        trajectory.table(study(asked[~gone]))
    with pytest.raises(Missing, match="before the last step"):
        trajectory.table(study(synthetic.metrics(points=1)))


def test_alphas_are_compared_with_ntp_and_one_seed_by_seed(metrics: pd.DataFrame) -> None:
    table = alpha.table(study(ablated(metrics)))
    assert set(table.scale_tokens) == {TOP}
    for arch, part in select(table, quantity="loss_relevant").groupby("arch"):
        assert part.alpha.tolist() == [0, 0.5, 1, 2]
        by = part.set_index("objective")
        rows = select(metrics, arch=arch, scale_tokens=TOP, benchmark="heldout", metric="loss_relevant", picture="with")
        ends = rows[rows.step == 200].pivot(index="seed", columns="objective", values="value")
        assert by.value["prior-a2"] == pytest.approx(1.1 * ends["prior"].mean())
        assert by.to_one["prior-a2"] == pytest.approx(0.1 * ends["prior"].mean())
        test = stats.ttest_rel(1.1 * ends["prior"], ends["ntp"])
        low, high = test.confidence_interval(0.95)
        assert tuple(by.loc["prior-a2", ["to_ntp_low", "to_ntp_high"]]) == pytest.approx((low, high))
        assert np.isnan(by.to_ntp["ntp"]) and np.isnan(by.to_one["prior"])
    with pytest.raises(Missing, match="another α"):
        alpha.table(study(metrics))


def test_alphas_that_end_early_are_compared_at_the_last_step_that_all_have(whole: pd.DataFrame) -> None:
    early = select(whole, step=100, scale_tokens=TOP, objective="prior")
    # Held-out losses were not measured at that step.
    early = early[early.benchmark != "heldout"]
    short = [
        early.assign(objective=name, value=early.value + more) for name, more in (("prior-a0.5", 3), ("prior-a2", -2))
    ]
    ends = select(whole, step=66, scale_tokens=TOP, objective="prior", benchmark="heldout")
    assert len(ends)
    short += [ends.assign(objective=name) for name in ("prior-a0.5", "prior-a2")]
    table = alpha.table(study(pd.concat([whole, *short], ignore_index=True)))
    benchmarks = table[table.kind != "loss"]
    assert set(benchmarks.step) == {100.0} and set(table[table.kind == "loss"].step) == {66.0}
    gaps = select(benchmarks, quantity="POPE (F1)").set_index(["arch", "objective"]).to_one
    assert gaps[("hlvlm", "prior-a0.5")] == pytest.approx(3) and gaps[("ulvlm", "prior-a2")] == pytest.approx(-2)
    at = select(whole, step=100, scale_tokens=TOP, objective="ntp", arch="hlvlm", benchmark="POPE", metric="f1")
    level = one(benchmarks, quantity="POPE (F1)", arch="hlvlm", objective="ntp").value
    assert level == pytest.approx(at.value.mean())


curves = st.lists(st.floats(-50, 50), min_size=5, max_size=5)


@given(curves, st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_what_all_seeds_share_is_no_instability(shape: list[float], seeds: int, state: int) -> None:
    steps, rng = np.array([10, 20, 30, 40, 43]), np.random.default_rng(state)
    noise = rng.standard_normal((seeds, 5))

    def measured(values: np.ndarray) -> pd.Series:
        rows = [
            {"seed": seed, "point": place, "step": steps[place], "value": values[seed, place]}
            for seed in range(seeds)
            for place in range(5)
        ]
        return stability.between_checkpoints(pd.DataFrame(rows))

    np.testing.assert_allclose(measured(noise + np.array(shape)), measured(noise), atol=1e-9, rtol=1e-6)
    # A single seed's straight line is none either, whatever the distances.
    line = pd.DataFrame({"seed": 0, "point": range(5), "step": steps, "value": 3.0 + 2 * steps})
    assert stability.between_checkpoints(line).iloc[0] == pytest.approx(0, abs=1e-18)
    assert stability.between_checkpoints(line[:2]).empty


def test_the_variance_between_checkpoints_is_that_of_their_noise() -> None:
    seeds, steps = 4000, np.array([10, 20, 30, 40, 43])
    values = np.sqrt(steps) + 3 * np.random.default_rng(1).standard_normal((seeds, 5))
    rows = pd.DataFrame({"seed": np.repeat(np.arange(seeds), 5), "point": np.tile(range(5), seeds)})
    rows = rows.assign(step=np.tile(steps, seeds), value=values.ravel())
    for group in (seeds, 4):
        found = pd.concat([stability.between_checkpoints(part) for _, part in rows.groupby(rows.seed // group)])
        assert found.mean() == pytest.approx(9, rel=0.05)


def test_stability_is_relative_to_ntp_of_the_same_seed(metrics: pd.DataFrame) -> None:
    asked = kept(metrics)
    table = stability.table(study(asked, {"training": logs()}))
    assert set(table.objective) == {"ntp", "prior"}
    for kind, ratio in (("all", 4), ("relevant", 0.5), ("other", 4)):
        for span in ("whole", "last half"):
            rows = select(table, quantity=f"training loss, {kind} tokens", span=span, objective="prior")
            assert len(rows) == 6
            for column in ("ratio", "ratio_low", "ratio_high"):
                assert rows[column].to_numpy() == pytest.approx(ratio)
    late = select(logs(), arch="hlvlm", objective="ntp", scale_tokens=TOP)
    late = late[late.first_step > 50].groupby("seed").loss_variance.mean()
    half = {"arch": "hlvlm", "scale_tokens": TOP, "quantity": "training loss, all tokens", "span": "last half"}
    assert one(table, objective="ntp", **half).value == pytest.approx(late.mean())
    # Of 100 judged steps 10 and 20 are spikes in two of three seeds, none in the third.
    spikes = select(table, quantity=stability.SPIKES, scale_tokens=TOP, arch="ulvlm").set_index("objective")
    assert spikes.value["ntp"] == pytest.approx(200 / 3) and spikes.ratio["prior"] == pytest.approx(2)
    assert spikes.difference["prior"] == pytest.approx(200 / 3)
    rows = select(asked, benchmark="CaptionChoice", metric="accuracy", picture="with", scale_tokens=TOP, arch="hlvlm")
    wide = select(rows, objective="prior").pivot(index="seed", columns="step", values="value")
    off = wide - wide.mean()
    bends = [off[100] - (off[50] + off[150]) / 2, off[150] - (off[100] + off[200]) / 2]
    expected = np.mean([bend**2 / 1.5 for bend in bends]) * 3 / 2
    found = one(table, quantity="CaptionChoice", arch="hlvlm", objective="prior")
    assert found.value == pytest.approx(expected) and found.span == "checkpoints"
    with pytest.raises(Missing):
        stability.table(study(synthetic.metrics(points=2)))


def test_the_papers_own_jitter() -> None:
    curve = read_paper(ROOT / "results/reported").trajectory
    table = select(stability.table(study(synthetic.metrics(), {"training": logs()})), arch="paper")
    for objective, value in zip(table.objective, table.value, strict=True):
        assert value == pytest.approx(np.mean(np.diff(curve[objective], 2) ** 2) / 6)


def test_costs_add_up_and_what_prior_adds_is_a_share_of_its_trainings() -> None:
    table = cost.table(study(synthetic.metrics(), {"costs": costs(), "training": logs()}))
    stages = select(table, kind="stage").set_index(["stage", "quantity"]).value
    assert stages["pretrain", "flops"] == pytest.approx(2 * 8e12 * 3.1) and stages["pretrain", "runs"] == 32
    assert stages["pretrain", "max_rss_mb"] == 700 and np.isnan(stages["corpus", "flops"])
    share = select(table, kind="share").set_index(["stage", "quantity"]).value
    assert share.groupby("quantity").sum().to_numpy() == pytest.approx(100)
    assert share["scores", "cpu_seconds"] == pytest.approx(100 * 3 / (20 + 12 + 3 + 2 * 40 * 3.1))
    extra = select(table, kind="extra", quantity="flops")
    # One of four runs at each scale: 2e12 and 0.2e12.
    by = extra[extra.arch == "hlvlm"].set_index("scale_tokens").value
    assert by[TOP] == pytest.approx(200) and by[40_000] == pytest.approx(2000)
    assert one(extra, arch="").value == pytest.approx(100 * 4e12 / (2 * 8e12 * 2.1))
    steps = select(table, kind="step")
    assert len(steps) == 8 and steps.value.to_numpy() == pytest.approx(1.1) and (steps.seeds == 3).all()


def test_a_missing_timing_is_told_and_counts_as_unknown() -> None:
    table = cost.table(study(synthetic.metrics(), {"costs": costs(missing=True)}))
    stages = select(table, kind="stage").set_index(["stage", "quantity"])
    assert np.isnan(stages.value["pretrain", "seconds"]) and np.isfinite(stages.value["pretrain", "flops"])
    share = select(table, kind="share", quantity="cpu_seconds")
    assert share.value.isna().all() and select(table, kind="share", quantity="flops").value.notna().sum() == 3
    shown, *_ = cost.show(table)
    assert "pre-training: 1 of 1 timings are missing" in shown.note
    with pytest.raises(Missing, match=r"costs\.csv"):
        cost.table(study(synthetic.metrics()))


@pytest.mark.parametrize("seeds", [1, 3])
def test_all_are_written_with_many_seeds_with_one_and_with_nothing(seeds: int, tmp_path: Path) -> None:
    metrics = ablated(kept(synthetic.metrics(seeds=seeds, benchmarks=("CaptionChoice",))))
    full = study(metrics, {"training": logs(seeds), "costs": costs(missing=seeds == 1)})
    write_outcomes(full, tmp_path / "t", tmp_path / "f", NAMES)
    for name in NAMES:
        assert all((tmp_path / "t" / f"{name}.{ending}").stat().st_size > 100 for ending in TABLE_ENDINGS)
        assert all((tmp_path / "f" / f"{name}.{ending}").stat().st_size > 5000 for ending in FIGURE_ENDINGS)
        written = pd.read_csv(tmp_path / f"t/{name}.csv")
        assert "missing" not in written.columns and ("seeds" not in written or written.seeds.max() == seeds)
        text = (tmp_path / f"t/{name}.md").read_text()
        assert "nan" not in text and ("so there is no interval" in text) == (seeds == 1)
    nothing = study(synthetic.metrics(points=1, benchmarks=()).loc[:, METRIC_COLUMNS])
    write_outcomes(nothing, tmp_path / "t", tmp_path / "f", NAMES)
    for name in NAMES:
        assert pd.read_csv(tmp_path / f"t/{name}.csv").columns.tolist() == ["missing"]
