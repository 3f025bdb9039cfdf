"""From metrics and items to what people read: numbers re-derived, gaps refused, files whole and the same each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval import display, figures, report, tables
from eval.results import final, read_items, read_metrics, read_paper, scores
from eval.scaling import fits, write_fits
from prior.config import Statistics
from prior.errors import UserError
from tests.eval import synthetic

SETTINGS = Statistics()
ROOT = Path(__file__).resolve().parents[2]
PAPER = read_paper(ROOT / "results" / "reported")


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


def test_no_entry_point_averages_over_fewer_seeds(metrics: pd.DataFrame, items: pd.DataFrame) -> None:
    gap = _spoil(metrics, "row")
    for entry in (
        lambda: tables.main_table(gap, items, SETTINGS, PAPER),
        lambda: tables.loss_table(gap, SETTINGS),
        lambda: fits(gap, SETTINGS),
    ):
        with pytest.raises(UserError, match="seed2"):
            entry()


def test_final_takes_the_tuned_checkpoint_and_the_last_step(metrics: pd.DataFrame) -> None:
    early = metrics[metrics.benchmark == "POPE"].assign(stage="pretrain", step=10, value=-1.0)
    early = early[early.arch != "baseline"]
    last = final(pd.concat([early, metrics]))
    assert (last[last.benchmark == "POPE"].stage == "tuned").all()
    heldout = last[last.benchmark == "heldout"]
    assert (heldout.step == heldout.scale_tokens // 2000).all()


def test_main_table_rederived(metrics: pd.DataFrame, items: pd.DataFrame) -> None:
    main = tables.main_table(metrics, items, SETTINGS, PAPER)
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
    assert _value(main, **key, kind="average", quantity="raw").value == pytest.approx(raw["prior"].mean())
    assert _value(main, **key, kind="average", quantity="corrected").value == pytest.approx(corrected["prior"].mean())
    # SEEDBench is at chance, so it is the one that is not testable; the other five are.
    rest = [column for column in bounds if column[0] != "SEEDBench"]
    able = sum((wide[column] - bounds[column][0]) / (bounds[column][1] - bounds[column][0]) for column in rest) / 5
    shown = _value(main, **key, kind="average", quantity="corrected_testable")
    assert shown.value == pytest.approx(able["prior"].mean()) and shown.low < shown.value < shown.high
    gain = _value(main, **key, kind="gain", quantity="relative")
    assert gain.value == pytest.approx(100 * (raw["prior"].mean() / raw["ntp"].mean() - 1))
    assert gain.low < gain.value < gain.high and gain.seeds == 3
    difference = (corrected["prior"] - corrected["ntp"]).mean()
    assert _value(main, **key, kind="gain", quantity="corrected").value == pytest.approx(difference)
    assert _value(main, **key, kind="paper", quantity="relative").value == 19
    guess = _value(main, objective="chance", kind="average", quantity="raw").value
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
    main = tables.main_table(metrics, items, SETTINGS, PAPER)
    text = display.markdown(display.main(main))
    for label in (
        "random answers",
        "always yes",
        "always no",
        "always A",
        "H-LVLM PRIOR, without picture",
        "testable?",
    ):
        assert re.search(rf"^\| [^|]*{re.escape(label)} \|", text, re.MULTILINE), label
    yes = _value(main, objective="always_yes", kind="answers", quantity="yes_rate:POPE")
    assert yes.value == 100 and np.isnan(yes.low)
    verdicts = main[main.kind == "testable"].set_index(["arch", "quantity"]).value
    assert verdicts["hlvlm", "MMStar"] == 1 and verdicts["hlvlm", "SEEDBench"] == 0
    header = text.splitlines()[2]
    assert header == "|  | MME-P | MME-R | MMStar | POPE (F1) | MMBench | SEEDBench |"


def test_loss_table_rederived(metrics: pd.DataFrame) -> None:
    losses = tables.loss_table(metrics, SETTINGS)
    rows = metrics[(metrics.metric == "loss_other") & (metrics.picture == "with") & (metrics.arch == "ulvlm")]
    last = rows[(rows.scale_tokens == 400_000) & (rows.step == 200)].groupby("objective").value.mean()
    row = _value(losses, arch="ulvlm", objective="prior", scale_tokens=400_000, picture="with", tokens="other")
    assert row.value == pytest.approx(last["prior"])
    assert row.gain == pytest.approx(last["prior"] - last["ntp"])
    assert len(losses) == 2 * 2 * 3 * 2 * 3


def test_accuracy_stands_beside_degenerate_rows_and_the_guessing_of_its_own_options() -> None:
    table = synthetic.metrics(archs=("hlvlm",), benchmarks=("POPE", "MMStar"))
    table.loc[(table.benchmark == "MMStar") & (table.metric == "chance"), "value"] = 100 / 3
    shown = tables.accuracy_table(table, synthetic.items(table), SETTINGS)
    assert shown.groupby("benchmark").chance.unique().map(list).to_dict() == {"MMStar": [100 / 3], "POPE": [50.0]}
    baseline = shown[shown.arch == "baseline"]
    assert set(zip(baseline.objective, baseline.benchmark, strict=True)) == {
        ("random", "MMStar"),
        ("always_A", "MMStar"),
        ("random", "POPE"),
        ("always_yes", "POPE"),
        ("always_no", "POPE"),
    }
    assert "\n| always A | MMStar |" in display.markdown(display.accuracy(shown))


def _write_all(
    table: pd.DataFrame,
    answers: pd.DataFrame,
    folder: Path,
    about: report.About,
    scored: pd.DataFrame | None = None,
) -> None:
    """Everything that people read."""
    laws = write_fits(table, SETTINGS, folder / "fits.json")
    tables.write_tables(table, answers, laws, SETTINGS, PAPER, folder / "tables")
    figures.write_figures(table, answers, laws, SETTINGS, PAPER, folder / "figures", scored)
    report.write_report(table, answers, laws, SETTINGS, PAPER, folder / "figures", folder / "report.html", about)


PRESETS = {
    "no tuning": {"benchmarks": ("CaptionChoice",), "spans": False, "archs": ("hlvlm",), "seeds": 2},
    "losses alone": {"benchmarks": (), "archs": ("ulvlm",), "points": 1, "seeds": 1},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_without_the_six_benchmarks(preset: str, tmp_path: Path) -> None:
    table = synthetic.metrics(**PRESETS[preset])
    answers = synthetic.items(table)
    _write_all(table, answers, tmp_path, report.About(preset))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "tables" / "main.csv").exists() == (preset == "no tuning")
    assert ("CaptionChoice" in page) == (preset == "no tuning")
    assert "MMStar" not in (tmp_path / "tables" / "losses.md").read_text() + "".join(re.findall("<th>.*?</th>", page))
    # An average over other benchmarks must not stand beside the paper's.
    assert "the paper reports" not in page and "paper: improvement" not in page
    assert (tmp_path / "figures" / "trajectory.png").exists() == (preset == "no tuning")


def test_everything_is_written_twice_alike(tmp_path: Path) -> None:
    table = synthetic.metrics(archs=("hlvlm",), seeds=2, benchmarks=("POPE", "MMStar"))
    answers, about = (
        synthetic.items(table),
        report.About("demo", {"a": {"b": [1, 2]}}, {"numpy": "2"}, ("abc123", "def456"), ("runs/x",)),
    )
    for name in ("first", "second"):
        _write_all(table, answers, tmp_path / name, about, synthetic.tokens())
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    names = {path.as_posix() for path in files}
    figures = ("scaling", "scaling_benchmarks", "trajectory", "losses", "benchmarks", "scores")
    assert {f"figures/{name}.{ending}" for name in figures for ending in ("pdf", "png")} <= names
    assert {
        f"tables/{name}.{ending}" for name in ("main", "losses", "accuracy", "fits") for ending in ("csv", "md")
    } <= names
    assert {"fits.json", "report.html"} <= names
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes(), path
    page = (tmp_path / "first" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(figures)
    assert not re.search(r"""(src|href)=["'](?!data:|#)|@import|url\(""", page)
    for text in ("a.b", "1, 2", "abc123", "def456", "runs/x", "numpy"):
        assert text in page


def test_figures_leave_the_users_home_alone() -> None:
    call = "from eval import style; style.figure(1, 1); import matplotlib; print(matplotlib.get_cachedir())"
    bare = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(ROOT)


def test_the_report_escapes_what_it_is_given() -> None:
    page = report.render(report.About("<script>x</script>"), {}, ["<b>"], {}, 0.95)
    assert "<script>" not in page and "&lt;b&gt;" in page


def test_findings_follow_the_intervals() -> None:
    rows = {"arch": "hlvlm", "objective": "prior", "scale_tokens": 1, "picture": "with"}
    gains = [
        ("relevant", -0.2, -0.3, -0.1),
        ("other", 0.1, -0.1, 0.3),
        ("all", 0.2, 0.1, 0.3),
        ("rest", 0.1, np.nan, np.nan),
    ]
    losses = pd.DataFrame(
        [rows | {"tokens": t, "gain": g, "gain_low": low, "gain_high": high} for t, g, low, high in gains]
    )
    said = report.findings({"losses": losses}, [])
    verdicts = ("lower than NTP's", "not distinguishable from NTP's", "higher than NTP's", "not comparable with NTP's")
    for sentence, verdict in zip(said, verdicts, strict=True):
        assert verdict in sentence
