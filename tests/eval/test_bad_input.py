"""Stored files that are not whole or do not belong together: one clear line, or a result that says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import display
from eval.checks import NEEDED
from eval.claims import write_claims
from eval.outcomes import accuracy, alpha, hallucination, losses, main, stability, trajectory, write_outcomes
from eval.results import select
from eval.study import Study, read_study
from prior.config import Objective, Preset
from prior.errors import UserError
from tests.eval import synthetic

PRESET = Preset(
    name="imagined",
    scales=["25k", "50k", "100k"],
    seeds=2,
    objectives={
        name: Objective(kind="prior" if alpha else "ntp", alpha=alpha, scales=None if alpha in (0, 1) else ["100k"])
        if alpha
        else Objective(kind="ntp")
        for name, alpha in synthetic.ALPHAS.items()
    },
)
SCALES = (25_000, 50_000, 100_000)
Spoil = Callable[[Path], None]


def write(folder: Path, study: Study) -> Path:
    """The files that a study is read from."""
    folder.mkdir(parents=True, exist_ok=True)
    study.metrics.to_csv(folder / "metrics.csv", index=False)
    study.items.to_parquet(folder / "items.parquet")
    for name, table in study.stored.items():
        table.to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def whole() -> Study:
    return synthetic.study(scales=SCALES, seeds=2)


@pytest.fixture
def folder(whole: Study, tmp_path: Path) -> Path:
    return write(tmp_path, whole)


def read(folder: Path, preset: Preset = PRESET) -> Study:
    fits = folder / "fits.json"
    return read_study(folder, preset, synthetic.REPORTED, fits if fits.is_file() else None)


def metrics(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Spoil:
    def spoil(folder: Path) -> None:
        change(pd.read_csv(folder / "metrics.csv", keep_default_na=False)).to_csv(folder / "metrics.csv", index=False)

    return spoil


def table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / f"{name}.parquet"
        change(pd.read_parquet(path)).to_parquet(path)

    return spoil


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


def without(**where: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: rows.drop(select(rows, **where).index)


def with_value(change: object, **where: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def spoil(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.astype({"value": object})
        rows.loc[select(rows, **where).index, "value"] = change
        return rows

    return spoil


def other_questions(rows: pd.DataFrame) -> pd.DataFrame:
    """One run was asked a question that the others were not, in place of another."""
    own = select(rows, arch="ulvlm", objective="prior", scale_tokens=100_000, seed=1, benchmark="MMStar", item="0")
    return rows.assign(item=rows.item.mask(rows.index.isin(own.index), "new"))


COSTS = NEEDED["costs"]
ONE = {"arch": "hlvlm", "objective": "prior", "scale_tokens": 100_000, "seed": 1}
LAST = {**ONE, "picture": "with", "benchmark": "POPE", "metric": "f1"}
WAY = {**ONE, "benchmark": "CaptionChoice", "metric": "accuracy", "step": 25}
REFUSED: dict[str, tuple[Spoil, str]] = {
    "no metrics": (lambda folder: (folder / "metrics.csv").unlink(), r"metrics\.csv: no such file"),
    "no items": (lambda folder: (folder / "items.parquet").unlink(), r"items\.parquet: no such file"),
    "metrics are no table": (text("metrics.csv", '"a,b\n1'), r"metrics\.csv: not a CSV table|lacks the column"),
    "empty metrics": (text("metrics.csv", ""), r"metrics\.csv: not a CSV table"),
    "no column": (metrics(lambda rows: rows.drop(columns="picture")), "lacks the column picture"),
    "a word for a number": (metrics(with_value("oops", **LAST)), "POPE f1.*not a number"),
    "NaN": (metrics(with_value("nan", **LAST)), "hlvlm/prior/100000/seed1.*POPE f1.*not a number"),
    "infinity": (metrics(with_value("inf", **LAST)), "POPE f1.*not a number"),
    "an empty cell": (metrics(with_value("", **LAST)), "POPE f1.*not a number"),
    "a row twice": (metrics(lambda rows: pd.concat([rows, select(rows, **LAST)])), "POPE f1.*more than once"),
    "a seed of one arm": (metrics(without(**ONE)), "missing hlvlm/prior/100000/seed1 .* and \\d+ more"),
    "a seed of all arms": (metrics(without(seed=1)), "seed1 and \\d+ more: missing, though in preset 'imagined'"),
    "a seed of an ablation": (
        metrics(without(**{**ONE, "objective": "prior-a2"})),
        "missing hlvlm/prior-a2/100000/seed1",
    ),
    "a benchmark of one arm": (
        metrics(without(arch="ulvlm", objective="prior", benchmark="MME")),
        "missing ulvlm/prior/25000/seed0 \\(MME",
    ),
    "a scale of one arm": (
        metrics(without(arch="ulvlm", objective="prior", scale_tokens=50_000)),
        "ulvlm/prior/50000/seed0.*missing, though in preset|missing ulvlm/prior/50000/seed0",
    ),
    "an arm": (metrics(without(arch="ulvlm")), "ulvlm/ntp/.* missing, though in preset"),
    "another preset's arm": (
        metrics(lambda rows: rows.replace({"objective": {"prior-a4": "cal"}})),
        "hlvlm/cal/100000/seed0.*not in preset 'imagined'; name the preset",
    ),
    "another preset's scale": (
        metrics(lambda rows: rows.replace({"scale_tokens": {50_000: 40_000}})),
        "hlvlm/ntp/40000/seed0.*not in preset 'imagined'",
    ),
    "no model": (metrics(lambda rows: select(rows, arch="baseline")), "no row of a model"),
    "a checkpoint on the way": (
        metrics(without(**WAY)),
        "hlvlm/prior/100000/seed1 lacks a checkpoint of CaptionChoice",
    ),
    "a checkpoint of NTP on the way": (
        metrics(without(objective="ntp", benchmark="CaptionChoice", step=25, arch="hlvlm", scale_tokens=100_000)),
        "hlvlm/ntp/100000/seed0 lacks a checkpoint of CaptionChoice",
    ),
    "fewer questions": (
        metrics(lambda rows: rows.assign(n_items=rows.n_items.mask(rows.index == select(rows, **LAST).index[0], 150))),
        "hlvlm/prior/100000/seed1: POPE f1 is over 150 items, others are over 200",
    ),
    "a draw of random answers": (
        metrics(without(arch="baseline", objective="random", seed=1, benchmark="MMStar", metric="accuracy")),
        "MMStar accuracy of random/seed1 is missing",
    ),
    "broken items": (text("items.parquet", "no"), r"items\.parquet: cannot be read as a table"),
    "items without a column": (table("items", lambda rows: rows.drop(columns="correct")), "lacks the column correct"),
    "items of other questions": (table("items", other_questions), "MMStar: question \\w+ was answered \\d+ times by"),
    "items of fewer seeds": (table("items", without(**ONE)), "hlvlm/prior/100000/seed1: .* is in metrics.csv alone"),
    "items of another run": (
        table("items", lambda rows: rows.assign(seed=rows.seed.mask(rows.seed == 1, 7))),
        r"seed\d: .* is in (metrics\.csv|items\.parquet) alone",
    ),
    "broken words": (text("words.parquet", "no"), r"words\.parquet: cannot be read as a table"),
    "words without captions": (
        table("words", lambda rows: rows.drop(columns=["caption", "weight"])),
        r"words\.parquet: lacks the column caption, weight; gather it again",
    ),
    "training of fewer runs": (
        table("training", without(**ONE)),
        r"training\.parquet: hlvlm/prior/100000/seed1 is missing, though in metrics\.csv",
    ),
    "training of other runs": (
        table("training", lambda rows: rows.assign(scale_tokens=rows.scale_tokens * 2)),
        r"training\.parquet: hlvlm/ntp/200000/seed0.* is not in metrics\.csv",
    ),
    "costs of other scales": (
        text("costs.csv", f"{','.join(COSTS)}\npretrain,hlvlm,ntp,40000,1,0,,,1.0,\n"),
        r"costs\.csv: hlvlm/ntp/40000 is not in metrics\.csv; gather it again",
    ),
    "a benchmark that nobody was asked": (
        text("benchmarks.csv", "benchmark,source,answer,rows,md5\nOther,own,generate,9,0\n"),
        r"benchmarks\.csv: Other is not in metrics\.csv; gather it again",
    ),
    "mutual information without a column": (
        table("mutual", lambda rows: rows.drop(columns="rho_gain")),
        r"mutual\.parquet: lacks the column rho_gain",
    ),
    "broken fits": (text("fits.json", "{"), r"fits\.json: cannot be read"),
    "fits that are none": (text("fits.json", '{"a": 1}'), r"fits\.json: not the fits of metrics\.csv; fit again"),
    "fits of other scales": (
        text("fits.json", json.dumps([{"kind": "fit", "arch": "hlvlm", "objective": "ntp", "scales": [40_000]}])),
        r"fits\.json: not the fits of metrics\.csv; fit again",
    ),
    "fits of other arms": (
        text("fits.json", json.dumps([{"kind": "fit", "arch": "hlvlm", "objective": "cal", "scales": []}])),
        r"fits\.json: not the fits of metrics\.csv; fit again",
    ),
    "provenance of other runs": (
        text("provenance.yaml", "runs/hlvlm/ntp/7M/seed0/pretrain: {}"),
        r"provenance\.yaml: runs/hlvlm/ntp/100k/seed0/pretrain is missing; gather it again",
    ),
    "broken provenance": (text("provenance.yaml", "a: [1"), r"provenance\.yaml: cannot be read"),
    "broken quality": (text("reference.json", "{"), r"reference\.json: cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_together_is_refused_in_one_line(folder: Path, case: str) -> None:
    spoil, message = REFUSED[case]
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_whole_files_are_read(folder: Path, whole: Study) -> None:
    found = read(folder)
    pd.testing.assert_frame_equal(found.metrics, whole.metrics, check_dtype=False)
    assert found.alphas == synthetic.ALPHAS and set(found.stored) == set(whole.stored)


def test_a_figure_and_a_claim_say_what_is_missing(folder: Path, tmp_path: Path) -> None:
    for name in ("words", "tokens", "training", "mutual"):
        (folder / f"{name}.parquet").unlink()
    study, out = read(folder), tmp_path / "out"
    write_outcomes(study, out / "tables", out / "figures", ["scores", "mutual", "words", "cost", "stability"])
    for name, file in {"scores": "words", "mutual": "mutual", "words": "words", "cost": "costs"}.items():
        assert f"there is no {file}." in (out / f"tables/{name}.md").read_text(encoding="utf-8")
    for name in ("scores", "mutual", "cost"):
        assert (out / f"figures/{name}.png").stat().st_size > 2000
    found = write_claims(study, out)
    for key in ("training", "words", "mutual"):
        assert found.why.str.contains(f"there is no {key}.parquet").any()
    assert (found.verdict == "not testable at this scale").sum() > 6


def test_words_of_unknown_relevance_are_shown_without_it(folder: Path, tmp_path: Path) -> None:
    def forget(rows: pd.DataFrame) -> pd.DataFrame:
        unknown = pd.array([pd.NA] * len(rows), "boolean")
        return rows.assign(relevant=unknown, word_class=pd.Categorical([None] * len(rows)))

    for name in ("words", "tokens"):
        table(name, forget)(folder)
    study, out = read(folder), tmp_path / "out"
    write_outcomes(study, out / "tables", out / "figures", ["scores", "words"])
    assert "AUC" not in (out / "tables/scores.md").read_text(encoding="utf-8")
    assert write_claims(study, out).why.str.contains("not known which words the picture decides").sum() == 2


def test_one_seed_has_results_that_say_so(tmp_path: Path) -> None:
    one = synthetic.study(scales=SCALES, seeds=1)
    study = read(write(tmp_path / "stored", one), PRESET.model_copy(update={"seeds": 1}))
    write_outcomes(study, tmp_path / "tables", tmp_path / "figures", ["main", "losses", "hallucination", "accuracy"])
    for module in (main, losses, hallucination, trajectory, alpha, stability, accuracy):
        numbers = module.table(study)
        assert (numbers.seeds[numbers.seeds > 0] == 1).all(), module
        if module is not accuracy:
            assert numbers.low.isna().all() and numbers.high.isna().all(), module
            assert "1 seed" in display.markdown(module.show(numbers)), module
    found = write_claims(study, tmp_path)
    assert found[found.p.notna()].statistic.str.startswith("AUC").all()
    assert "one seed gives no interval" in (tmp_path / "claims.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, pd.DataFrame]:
    study = synthetic.study(scales=SCALES, seeds=2, archs=("hlvlm",))
    return write(tmp_path_factory.mktemp("small"), study), study, counted(study)


def counted(study: Study) -> pd.DataFrame:
    """How many seeds or pairs stand behind every number that people read of metrics.csv."""
    tables = []
    for name, module in {"main": main, "trajectory": trajectory, "losses": losses, "chair": hallucination}.items():
        rows = module.table(study)
        keys = [column for column in rows if rows[column].dtype == object and column not in ("note", "unit")]
        tables.append(rows[keys].astype(str).agg("/".join, axis=1).to_frame("key").assign(n=rows.seeds, of=name))
    return pd.concat(tables, ignore_index=True).sort_values(["of", "key", "n"], ignore_index=True)


@settings(deadline=None, max_examples=60)
@given(row=st.integers(0, 10**6), data=st.data())
def test_no_row_goes_without_a_word(small: tuple[Path, Study, pd.DataFrame], row: int, data: st.DataObject) -> None:
    """Any one row of metrics.csv dropped: refused with a line, or as many seeds behind every number as before."""
    folder, study, before = small
    kinds = study.metrics[["benchmark", "metric", "picture", "stage"]].drop_duplicates()
    kind = data.draw(st.sampled_from(list(kinds.itertuples(index=False, name=None))))
    rows = select(study.metrics, **dict(zip(kinds.columns, kind, strict=True)))
    study.metrics.drop(index=rows.index[row % len(rows)]).to_csv(folder / "metrics.csv", index=False)
    alone = PRESET.architectures.model_copy(update={"ulvlm": None})
    try:
        left = read(folder, PRESET.model_copy(update={"architectures": alone}))
    except UserError as error:
        assert "\n" not in str(error)
        return
    pd.testing.assert_frame_equal(counted(left), before)
