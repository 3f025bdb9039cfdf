"""Published results: every table follows from the published metrics, and every number from a run of committed code."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval import tables
from eval.results import read_items, read_metrics, read_paper
from eval.scaling import write_fits
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
    assert {folder.name for folder in PUBLISHED} >= {"scenes", "photos"}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_tables_follow_from_published_metrics(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIOR_PHOTOS", "photos")
    preset = load_preset(folder.name)
    metrics, items = read_metrics(folder / "metrics.csv"), read_items(folder / "items.parquet")
    fits = write_fits(metrics, preset.statistics, tmp_path / "fits.json")
    stored = json.loads((folder / "fits.json").read_text())
    assert [fit["exponent"] for fit in fits] == [
        {
            key: pytest.approx(value, nan_ok=True) if value is not None else None
            for key, value in fit["exponent"].items()
        }
        for fit in stored
    ]
    tables.write_tables(metrics, items, stored, preset.statistics, read_paper(RESULTS / "reported"), tmp_path)
    for path in sorted(tmp_path.glob("*.csv")):
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(folder / "tables" / path.name))
        made, shown = ((place / f"{path.stem}.md").read_text() for place in (tmp_path, folder / "tables"))
        assert made == shown, path.stem
    assert {"main", "losses", "fits"} <= {path.stem for path in tmp_path.glob("*.csv")}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_runs_are_those_of_the_preset_and_of_committed_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIOR_PHOTOS", "photos")
    preset = load_preset(folder.name)
    runs = yaml.safe_load((folder / "provenance.yaml").read_text())
    stages = ["pretrain", "tuned"] if preset.tune else ["pretrain"]
    assert set(runs) == {f"runs/{run}/{stage}" for run in preset.runs() for stage in stages}
    for name, run in runs.items():
        assert not run["commit"].endswith("dirty") and run["commit"] != "unknown", name
        assert run["settings"].get("training", run["settings"].get("tune", {}).get("training")), name
        if run["stage"] == "pretrain":
            # Settings that came after a run, and were left open, are not in its description.
            objective = preset.objectives[run["objective"]].model_dump(mode="json", exclude_none=True)
            described = {key: value for key, value in run["settings"]["objective"].items() if value is not None}
            assert run["settings"]["training"] == preset.pretrain.model_dump(mode="json"), name
            assert described == objective, name
