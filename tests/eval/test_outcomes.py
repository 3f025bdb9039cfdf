"""What a result is said to be made from is what it is made from: on the published run of the default preset."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from eval.outcomes import OUTCOMES
from eval.results import Paper
from eval.stored import FITS, ITEMS, METRICS, QUALITY, REPORTED, TABLES
from eval.study import Missing, Study, read_study
from prior.presets import load_preset

RESULTS = Path(__file__).resolve().parents[2] / "results"
PUBLISHED = RESULTS / "published/scenes"
FILES = (METRICS, ITEMS, *TABLES.values(), QUALITY, FITS, REPORTED)


@pytest.fixture(scope="module")
def study() -> Study:
    return read_study(PUBLISHED, load_preset("scenes"), RESULTS / "reported", PUBLISHED / FITS)


def changed(study: Study, file: str) -> Study:
    """The study with other numbers in one of its files, or without it."""
    if file == METRICS:
        return replace(study, metrics=study.metrics.assign(value=study.metrics.value / 2))
    if file == ITEMS:
        return replace(study, items=study.items.iloc[:0])
    if file == REPORTED:
        claims, trajectory = study.paper.claims, study.paper.trajectory
        return replace(study, paper=Paper(claims.assign(value=0.0), trajectory.assign(prior=1.0)))
    if file == FITS:
        return replace(study, fits=[])
    if file == QUALITY:
        return replace(study, quality=None)
    return replace(study, stored={name: table for name, table in study.stored.items() if TABLES[name] != file})


def table(study: Study, name: str) -> pd.DataFrame | str:
    try:
        return importlib.import_module(f"eval.outcomes.{name}").table(study)
    except (Missing, ValueError, KeyError) as error:
        return repr(error)


# MME's maximum, where it is asked on the way; points in a figure.
ELSEWHERE = {("trajectory", ITEMS), ("stability", ITEMS), ("scaling", METRICS)}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_result_is_made_from_the_files_that_it_names_and_from_no_others(study: Study, name: str) -> None:
    before = table(study, name)
    assert isinstance(before, pd.DataFrame) and len(before)
    named, without = OUTCOMES[name].read, study
    for file in FILES:
        if file not in named:
            without = changed(without, file)
    pd.testing.assert_frame_equal(table(without, name), before)
    for file in named:
        after = table(changed(study, file), name)
        same = isinstance(after, pd.DataFrame) and before.equals(after)
        assert same == ((name, file) in ELSEWHERE), file
