"""Published results: all that people read follows from the published numbers, and these from runs of committed code."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval.claims import write_claims
from eval.outcomes import OUTCOMES, TABLE_ENDINGS, write_outcomes
from eval.results import read_metrics
from eval.scaling import write_fits
from eval.stored import FILES
from eval.study import read_study
from prior.config import ScenesCorpus
from prior.presets import PRESETS, load_preset

RESULTS = Path(__file__).resolve().parents[2] / "results"
PUBLISHED = sorted(path.parent for path in (RESULTS / "published").glob("*/metrics.csv"))


def test_no_preset_writes_among_what_is_committed() -> None:
    assert {path.name for path in RESULTS.iterdir() if path.name in ("published", "reported")} == {
        "published",
        "reported",
    }
    assert not {path.stem for path in PRESETS.glob("*.yaml")} & {"published", "reported", "bench"}


def test_there_is_something_published() -> None:
    assert "study" in {folder.name for folder in PUBLISHED}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_what_people_read_follows_from_the_published_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIOR_PHOTOS", "photos")
    preset = load_preset(folder.name)
    # The words of captions that are not ours are not published: of what is made of them only the tables are.
    withheld = [] if isinstance(preset.corpus, ScenesCorpus) else ["words.parquet"]
    assert [name for name in FILES if not (folder / name).is_file()] == withheld
    write_fits(read_metrics(folder / "metrics.csv"), preset.statistics, tmp_path / "fits.json")
    assert (tmp_path / "fits.json").read_text() == (folder / "fits.json").read_text()
    study = read_study(folder, preset, RESULTS / "reported", tmp_path / "fits.json")
    write_outcomes(study, tmp_path / "tables", tmp_path / "figures")
    write_claims(study, tmp_path)
    made = [f"tables/{name}.{ending}" for name in OUTCOMES for ending in TABLE_ENDINGS]
    made += [f"claims.{ending}" for ending in ("csv", "md", "html")]
    for name in made:
        if withheld and Path(name).stem in ("words", "scores", "claims"):
            continue
        assert (tmp_path / name).read_text() == (folder / name).read_text(), name
    claims, published = (pd.read_csv(place / "claims.csv") for place in (tmp_path, folder))
    # What words decide cannot be made anew without them, and Holm's p is over all.
    told = published.n.notna() & ~published.statistic.str.contains("words") if withheld else slice(None)
    columns = ["claim", "statistic", "paper", "value", "low", "high", "n", "p"]
    pd.testing.assert_frame_equal(claims.loc[told, columns], published.loc[told, columns])
    drawn = {f"{name}.{ending}" for name, heading in OUTCOMES.items() if heading.figure for ending in ("pdf", "png")}
    assert {path.name for path in (folder / "figures").iterdir()} == drawn


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_tables_for_latex_hold_no_sign_that_it_may_not_know(folder: Path) -> None:
    for path in (folder / "tables").glob("*.tex"):
        assert path.read_text(encoding="utf-8").isascii(), path


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_runs_are_those_of_the_preset_and_of_committed_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIOR_PHOTOS", "photos")
    preset = load_preset(folder.name)
    runs = yaml.safe_load((folder / "provenance.yaml").read_text())
    assert set(runs) == {f"runs/{run}/{stage}" for run in preset.runs() for stage in preset.stages}
    for name, run in runs.items():
        assert not run["commit"].endswith("dirty") and run["commit"] != "unknown", name
        assert run["settings"].get("training", run["settings"].get("tune", {}).get("training")), name
        if run["stage"] == "pretrain":
            # Settings that came after a run, and were left open, are not in its description.
            objective = preset.objectives[run["objective"]].model_dump(mode="json", exclude_none=True)
            described = {key: value for key, value in run["settings"]["objective"].items() if value is not None}
            assert run["settings"]["training"] == preset.pretrain.model_dump(mode="json"), name
            assert described == objective, name
