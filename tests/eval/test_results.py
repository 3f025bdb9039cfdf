"""From metrics and items to what people read: numbers re-derived, gaps refused, files whole and the same each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eval import display
from eval.claims import write_claims
from eval.outcomes import FIGURE_ENDINGS, OUTCOMES, TABLE_ENDINGS, accuracy, losses, main, write_outcomes
from eval.results import final, read_items, read_metrics, read_paper, scores
from eval.scaling import fits
from eval.study import Missing, Study
from prior.config import Statistics
from prior.errors import UserError
from tests.eval import synthetic

SETTINGS = Statistics()
ROOT = Path(__file__).resolve().parents[2]
PAPER = read_paper(ROOT / "results" / "reported")


def study(metrics: pd.DataFrame, items: pd.DataFrame | None = None) -> Study:
    return Study("imagined", SETTINGS, metrics, synthetic.items(metrics) if items is None else items, PAPER)


@pytest.fixture(scope="module")
def metrics() -> pd.DataFrame:
    return synthetic.metrics()


@pytest.fixture(scope="module")
def items(metrics: pd.DataFrame) -> pd.DataFrame:
    return synthetic.items(metrics)


def _value(table: pd.DataFrame, **where: object) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_paper_figures_have_sources() -> None:
    told = PAPER.claims[PAPER.claims.claim == "relative_improvement"].set_index("arch").value
    assert told["hlvlm"] == 19 and told["ulvlm"] == 8
    best = PAPER.trajectory[["ntp", "prior"]].max()
    assert best["prior"] / best["ntp"] == pytest.approx(1.188, abs=5e-4)
    for table in (PAPER.claims, PAPER.trajectory):
        assert table.source.str.contains("2505.08971").all()


def test_metrics_survive_the_disk(metrics: pd.DataFrame, items: pd.DataFrame, tmp_path: Path) -> None:
    metrics.to_csv(tmp_path / "metrics.csv", index=False)
    pd.testing.assert_frame_equal(read_metrics(tmp_path / "metrics.csv"), metrics, check_dtype=False)
    answers = items.assign(answer="None")
    answers.to_parquet(tmp_path / "items.parquet")
    assert (read_items(tmp_path / "items.parquet").answer == "None").all()


def _spoil(metrics: pd.DataFrame, how: str) -> pd.DataFrame:
    seed = (metrics.arch == "ulvlm") & (metrics.objective == "prior") & (metrics.seed == 2)
    at = metrics.index[seed & (metrics.benchmark == "POPE") & (metrics.metric == "f1") & (metrics.picture == "with")]
    if how == "number":
        return metrics.astype({"value": object}).replace({"value": {metrics.value[at[0]]: "oops"}})
    if how == "column":
        return metrics.drop(columns="picture")
    if how == "twice":
        return pd.concat([metrics, metrics.loc[at[:1]]])
    if how == "row":
        return metrics.drop(index=at[-1])
    return metrics[~seed] if how == "seed" else metrics[metrics.arch == "baseline"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("number", "row .*oops|POPE f1.*not a number"),
        ("column", "lacks the column picture"),
        ("twice", "ulvlm/prior/40000/seed2.*POPE f1.*more than once"),
        ("row", r"missing ulvlm/prior/400000/seed2 \(POPE f1, with picture\);"),
        ("seed", r"missing ulvlm/prior/40000/seed2 .* and \d+ more"),
        ("models", "no row of a model"),
    ],
)
def test_bad_metrics_are_refused_in_one_line(metrics: pd.DataFrame, tmp_path: Path, how: str, message: str) -> None:
    _spoil(metrics, how).to_csv(tmp_path / "metrics.csv", index=False)
    with pytest.raises(UserError, match=message) as error:
        read_metrics(tmp_path / "metrics.csv")
    assert "\n" not in str(error.value)


def test_no_study_averages_over_fewer_seeds(metrics: pd.DataFrame, items: pd.DataFrame) -> None:
    for make in (lambda gap: study(gap, items), lambda gap: fits(gap, SETTINGS)):
        with pytest.raises(UserError, match="seed2"):
            make(_spoil(metrics, "row"))


def test_final_takes_the_tuned_checkpoint_and_the_last_step(metrics: pd.DataFrame) -> None:
    early = metrics[metrics.benchmark == "POPE"].assign(stage="pretrain", step=10, value=-1.0)
    early = early[early.arch != "baseline"]
    last = final(pd.concat([early, metrics]))
    assert (last[last.benchmark == "POPE"].stage == "tuned").all()
    heldout = last[last.benchmark == "heldout"]
    assert (heldout.step == heldout.scale_tokens // 2000).all()


def test_main_table_rederived(metrics: pd.DataFrame, items: pd.DataFrame) -> None:
    table = main.table(study(metrics, items))
    wide = metrics[(metrics.scale_tokens == 400_000) & (metrics.picture == "with") & (metrics.arch == "hlvlm")]
    wide = wide[wide.stage == "tuned"].pivot(
        index=["objective", "seed"], columns=["benchmark", "metric"], values="value"
    )
    # Chance and maximum by hand: four perception categories, one reasoning category.
    bounds = {
        ("MME", "perception"): (300, 800),
        ("MME", "reasoning"): (75, 200),
        ("MMStar", "accuracy"): (25, 100),
        ("POPE", "f1"): (50, 100),
        ("MMBench", "accuracy"): (25, 100),
        ("SEEDBench", "accuracy"): (25, 100),
    }
    raw = sum(wide[column] for column in bounds) / 6
    corrected = sum((wide[column] - low) / (high - low) for column, (low, high) in bounds.items()) / 6
    key = {"arch": "hlvlm", "objective": "prior", "picture": "with"}
    assert _value(table, **key, kind="average", quantity="raw").value == pytest.approx(raw["prior"].mean())
    assert _value(table, **key, kind="average", quantity="corrected").value == pytest.approx(corrected["prior"].mean())
    # SEEDBench is at chance, so it is the one that is not testable; the other five are.
    rest = [column for column in bounds if column[0] != "SEEDBench"]
    able = sum((wide[column] - bounds[column][0]) / (bounds[column][1] - bounds[column][0]) for column in rest) / 5
    shown = _value(table, **key, kind="average", quantity="corrected_testable")
    assert shown.value == pytest.approx(able["prior"].mean()) and shown.low < shown.value < shown.high
    gain = _value(table, **key, kind="gain", quantity="relative")
    assert gain.value == pytest.approx(100 * (raw["prior"].mean() / raw["ntp"].mean() - 1))
    assert gain.low < gain.value < gain.high and gain.seeds == 3
    difference = (corrected["prior"] - corrected["ntp"]).mean()
    assert _value(table, **key, kind="gain", quantity="corrected").value == pytest.approx(difference)
    assert _value(table, **key, kind="paper", quantity="relative").value == 19
    guess = _value(table, objective="chance", kind="average", quantity="raw").value
    assert guess == pytest.approx(np.mean([low for low, _ in bounds.values()]))


def test_the_papers_coin_flip_average() -> None:
    """With all fourteen MME categories guessing scores about 196 on the raw average."""
    table = synthetic.metrics(seeds=1)
    asked = ["OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene"]
    asked += ["code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation"]
    columns = scores(table, pd.DataFrame({"benchmark": "MME", "category": asked}))
    assert {score.label: score.best for score in columns if score.benchmark == "MME"} == {"MME-P": 2000, "MME-R": 800}
    assert np.mean([score.chance for score in columns]) == pytest.approx(196, abs=5)


def test_degenerate_rows_stand_in_the_main_table(metrics: pd.DataFrame, items: pd.DataFrame) -> None:
    table = main.table(study(metrics, items))
    text = display.markdown(main.show(table))
    for label in (
        "random answers",
        "always yes",
        "always no",
        "always A",
        "H-LVLM PRIOR, without picture",
        "testable?",
    ):
        assert re.search(rf"^\| [^|]*{re.escape(label)} \|", text, re.MULTILINE), label
    yes = _value(table, objective="always_yes", kind="answers", quantity="yes_rate:POPE")
    assert yes.value == 100 and np.isnan(yes.low)
    verdicts = table[table.kind == "testable"].set_index(["arch", "quantity"]).value
    assert verdicts["hlvlm", "MMStar"] == 1 and verdicts["hlvlm", "SEEDBench"] == 0
    header = text.splitlines()[2]
    assert header == "|  | MME-P | MME-R | MMStar | POPE (F1) | MMBench | SEEDBench |"


def test_loss_table_rederived(metrics: pd.DataFrame) -> None:
    table = losses.table(study(metrics))
    rows = metrics[(metrics.metric == "loss_other") & (metrics.picture == "with") & (metrics.arch == "ulvlm")]
    last = rows[(rows.scale_tokens == 400_000) & (rows.step == 200)].groupby("objective").value.mean()
    row = _value(table, arch="ulvlm", objective="prior", scale_tokens=400_000, picture="with", tokens="other")
    assert row.value == pytest.approx(last["prior"])
    assert row.gain == pytest.approx(last["prior"] - last["ntp"])
    assert len(table) == 2 * 2 * 3 * 2 * 3


def test_accuracy_stands_beside_degenerate_rows_and_the_guessing_of_its_own_options() -> None:
    table = synthetic.metrics(archs=("hlvlm",), benchmarks=("POPE", "MMStar"))
    table.loc[(table.benchmark == "MMStar") & (table.metric == "chance"), "value"] = 100 / 3
    shown = accuracy.table(study(table))
    assert shown.groupby("benchmark").chance.unique().map(list).to_dict() == {"MMStar": [100 / 3], "POPE": [50.0]}
    baseline = shown[shown.arch == "baseline"]
    assert set(zip(baseline.objective, baseline.benchmark, strict=True)) == {
        ("random", "MMStar"),
        ("always_A", "MMStar"),
        ("random", "POPE"),
        ("always_yes", "POPE"),
        ("always_no", "POPE"),
    }
    assert "\n| always A | MMStar |" in display.markdown(accuracy.show(shown))


PRESETS = {
    "no tuning": {"benchmarks": ("CaptionChoice",), "spans": False, "archs": ("hlvlm",), "seeds": 2},
    "losses alone": {"benchmarks": (), "archs": ("ulvlm",), "points": 1, "seeds": 1},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_without_the_six_benchmarks(preset: str) -> None:
    given: dict[str, Any] = PRESETS[preset]
    known = study(synthetic.metrics(**given))
    if preset == "losses alone":
        with pytest.raises(Missing, match="no benchmark"):
            main.table(known)
    else:
        text = display.markdown(main.show(main.table(known)))
        # An average over other benchmarks must not stand beside the paper's.
        assert "CaptionChoice" in text and "MMStar" not in text and "paper: improvement" not in text
    assert set(losses.table(known).tokens) == ({"all"} if preset == "no tuning" else {"relevant", "other", "all"})


def test_everything_is_written_twice_alike(tmp_path: Path) -> None:
    known = synthetic.study(archs=("hlvlm",), seeds=2, scales=(100_000, 200_000, 400_000))
    known = replace(known, fits=fits(known.metrics, SETTINGS))
    for name in ("first", "second"):
        write_outcomes(known, tmp_path / name / "tables", tmp_path / name / "figures")
        write_claims(known, tmp_path / name)
    files = {path.relative_to(tmp_path / "first").as_posix() for path in (tmp_path / "first").rglob("*.*")}
    assert files == {
        *(f"tables/{name}.{ending}" for name in OUTCOMES for ending in TABLE_ENDINGS),
        *(f"figures/{name}.{ending}" for name, it in OUTCOMES.items() if it.figure for ending in FIGURE_ENDINGS),
        *(f"claims.{ending}" for ending in ("csv", "md", "html")),
    }
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes(), path


def test_figures_leave_the_users_home_alone() -> None:
    call = "from eval import style; style.figure(1, 1); import matplotlib; print(matplotlib.get_cachedir())"
    bare = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(ROOT)
