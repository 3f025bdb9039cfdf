"""Mutual information of held-out tokens: gathered from imagined runs, against plain computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.gather.mutual import BINS, equal_bins, mutual, rank_correlation
from eval.gather.words import describe
from eval.outcomes import mutual as outcome
from eval.results import Paper
from eval.statistics import mean_interval
from eval.study import Study
from prior.config import Objective, Preset, Statistics
from prior.corpus.scenes import pair
from prior.documents import Documents, tokenize_captions
from prior.errors import UserError
from prior.scores import write_scores
from prior.tokens import ragged_array
from tests.eval import synthetic

CAPTIONS = 30


def preset(seeds: int) -> Preset:
    objectives = {
        "ntp": Objective(kind="ntp"),
        "prior": Objective(kind="prior", alpha=1.0),
        "prior-a2": Objective(kind="prior", alpha=2.0, scales=["3k"], steps=5),
    }
    return Preset(name="imagined", scales=["1k", "2k", "3k"], seeds=seeds, objectives=objectives)


class Runs:
    """Imagined runs of a preset, in a folder, and what they say of every held-out token."""

    def __init__(self, folder: Path, tokenizer: Any, seeds: int) -> None:
        from datasets import Dataset

        rows = [pair("val", index, 0, 16) for index in range(CAPTIONS + 5)]
        self.records = Dataset.from_list([{name: row[name] for name in ("id", "caption", "relevant")} for row in rows])
        self.folder, self.preset, self.tokenizer = folder, preset(seeds), tokenizer
        whole = tokenize_captions(self.records, tokenizer, image=False)
        documents = tokenize_captions(self.records, tokenizer, image=False, limit=CAPTIONS)
        rng = np.random.default_rng(0)
        scored = -rng.exponential(1.2, len(whole.targets.values)).astype(np.float32)
        self.scores = folder / "scores.arrow"
        write_scores(self.scores, whole, scored, {})
        count = len(documents.targets.values)
        self.w = -np.expm1(scored[:count].astype(float))
        assert documents.relevant is not None
        self.relevant = documents.relevant.values == 1
        self.said: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for run in self.preset.runs():
            blind = -rng.exponential(1.5, count).astype(np.float32)
            told = (2 * self.relevant * self.w + 0.3 * rng.normal(size=count)).astype(np.float32)
            self.said[run] = (np.minimum(blind + told, 0).astype(np.float32), blind)
            self._write(run, documents)

    def _write(self, run: str, documents: Documents) -> None:
        where = self.folder / "runs" / run / "pretrain/token_logprobs.arrow"
        where.parent.mkdir(parents=True)
        columns = {"id": pa.array(documents.ids), "input_ids": ragged_array(documents.targets, pa.int32())}
        for name, values in zip(("logprob", "logprob_without_picture"), self.said[run], strict=True):
            columns[name] = ragged_array(documents.targets.beside(values), pa.float32())
        table = pa.table(columns)
        with pa.ipc.new_file(str(where), table.schema) as writer:
            writer.write_table(table)

    def gathered(self) -> pd.DataFrame:
        return mutual(self.folder, self.preset, self.scores, self.records, self.tokenizer)

    def mi(self, run: str) -> np.ndarray:
        seen, blind = self.said[run]
        return seen.astype(float) - blind


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Runs:
    return Runs(tmp_path_factory.mktemp("three"), tokenizer, seeds=3)


@pytest.fixture(scope="module")
def table(three: Runs) -> pd.DataFrame:
    return three.gathered()


def rows(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    for name, wanted in where.items():
        table = table[table[name] == wanted]
    return table


def study(table: pd.DataFrame) -> Study:
    metrics = synthetic.metrics()
    paper = Paper(pd.DataFrame(), pd.DataFrame())
    return Study("imagined", Statistics(), metrics, synthetic.items(metrics), paper, stored={"mutual": table})


def test_tokens_are_summarised_as_a_plain_computation_does(three: Runs, table: pd.DataFrame) -> None:
    run, ntp = "ulvlm/prior/3k/seed2", "ulvlm/ntp/3k/seed2"
    mine = rows(table, arch="ulvlm", objective="prior", scale_tokens=3000, seed=2, unit="token")
    gain = three.said[run][0].astype(float) - three.said[ntp][0]
    # Seed 0 follows the last one: the judge of gains is never the run that is gained over.
    assert set(mine.judge) == {0}
    judge = three.mi("ulvlm/ntp/3k/seed0")
    for group, mask in (("all", np.ones(len(gain), bool)), ("relevant", three.relevant), ("other", ~three.relevant)):
        (row,) = rows(mine, group=group, by="all").itertuples()
        assert row.n == mask.sum()
        assert row.mi == pytest.approx(three.mi(run)[mask].mean(), rel=1e-5)
        assert row.gain == pytest.approx(gain[mask].mean(), rel=1e-4)
        assert row.w == pytest.approx(three.w[mask].mean(), rel=1e-5)
        assert row.rho_w == pytest.approx(stats.spearmanr(three.w[mask], three.mi(run)[mask]).statistic, rel=1e-5)
        assert row.rho_gain == pytest.approx(stats.spearmanr(judge[mask], gain[mask]).statistic, rel=1e-4)
    cuts = (stats.rankdata(judge, "ordinal") - 1) * BINS // len(judge)
    binned = rows(mine, group="all", by="mi").set_index("bin")
    assert binned.gain.to_numpy(float) == pytest.approx(pd.Series(gain).groupby(cuts).mean().to_numpy(), rel=1e-4)
    assert binned.mi.to_numpy(float) == pytest.approx(pd.Series(judge).groupby(cuts).mean().to_numpy(), rel=1e-4)
    # Bins of the groups are parts of the bins of all.
    parts = rows(mine, by="w")[["group", "bin", "n"]].pivot_table(
        index="bin", columns="group", values="n", observed=True
    )
    assert (parts.fillna(0).relevant + parts.fillna(0).other == parts["all"]).all() and len(parts) == BINS


def test_words_sum_what_their_tokens_say(three: Runs, table: pd.DataFrame) -> None:
    described = describe(three.records.select(range(CAPTIONS)), three.tokenizer, three.preset.corpus)
    run = "hlvlm/ntp/2k/seed1"
    inside = described.assign(mi=three.mi(run), w=three.w)[described.place >= 0]
    words = inside.groupby(["caption", "place"]).agg(mi=("mi", "sum"), w=("w", "mean"))
    (row,) = rows(
        table, arch="hlvlm", objective="ntp", scale_tokens=2000, seed=1, unit="word", group="all", by="all"
    ).itertuples()
    assert row.n == len(words) and row.mi == pytest.approx(words.mi.mean(), rel=1e-4)
    assert row.rho_w == pytest.approx(stats.spearmanr(words.w, words.mi).statistic, rel=1e-4)
    assert np.isnan(row.gain) and np.isnan(row.rho_gain)


def test_only_the_largest_scale_is_binned_and_early_ends_are_no_rivals(table: pd.DataFrame) -> None:
    assert set(table[table.by != "all"].scale_tokens) == {3000}
    assert rows(table, objective="prior-a2").gain.isna().all()
    kinds = {"class:name", "class:number", "class:visual", "class:function", "class:stock"}
    assert kinds <= set(table.group)
    # PRIOR's weights are 1 on average.
    tokens = rows(table, unit="token", group="all", by="all")
    assert tokens.weight.to_numpy(float) == pytest.approx(1, rel=1e-5)


def test_seeds_are_averaged_with_intervals_and_classes_add_up(three: Runs, table: pd.DataFrame) -> None:
    found = outcome.table(study(table))
    arm = rows(found, arch="hlvlm", objective="ntp", scale_tokens=3000, unit="token")
    (row,) = rows(arm, quantity="mi", group="relevant", bin=-1).itertuples()
    expected = mean_interval([three.mi(f"hlvlm/ntp/3k/seed{seed}")[three.relevant].mean() for seed in range(3)], 0.95)
    assert (row.value, row.low, row.high) == pytest.approx((expected.estimate, expected.low, expected.high), rel=1e-4)
    assert row.seeds == 3 and row.other_seed
    (whole,) = rows(arm, quantity="mi", group="all", bin=-1).value
    for quantity, total in (("part", whole), ("share", 1), ("weight_share", 1)):
        classes = arm[(arm.quantity == quantity) & arm.group.str.startswith("class:")]
        assert classes.value.sum() == pytest.approx(total, rel=1e-4)
    shown = outcome.show(found)
    assert len(shown) == 5 and "another seed" in shown[2].note
    assert len(outcome.draw(found, study(table)).axes) == 6


def test_one_seed_has_no_intervals_and_says_whose_information_it_used(tmp_path: Path, tokenizer: Any) -> None:
    single = Runs(tmp_path, tokenizer, seeds=1)
    found = outcome.table(study(single.gathered()))
    assert found.low.isna().all() and set(found.seeds) == {1} and not found.other_seed.any()
    shown = outcome.show(found)
    assert "one seed" in shown[2].note and "no interval" in shown[0].note
    outcome.draw(found, study(single.gathered()))


def test_scores_of_other_captions_are_refused(three: Runs, tmp_path: Path) -> None:
    other = tokenize_captions(three.records.select(range(5, CAPTIONS + 5)), three.tokenizer, image=False)
    path = tmp_path / "other.arrow"
    write_scores(path, other, np.zeros(len(other.targets.values), np.float32), {})
    with pytest.raises(UserError, match="score again"):
        mutual(three.folder, three.preset, path, three.records, three.tokenizer)


def test_departures_from_the_claim_have_closed_forms() -> None:
    rising = np.array([0.0, 0.5, 1.0, 2.0])
    assert outcome.largest_fall(rising) == 0
    assert outcome.largest_fall(np.array([1.0, 3.0, 2.5, 0.5, 1.0])) == 2.5
    assert outcome.off_proportion(rising, 3 * rising) == pytest.approx(0)
    assert outcome.off_proportion(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == pytest.approx(1)


@given(st.lists(st.floats(-5, 5), min_size=BINS, max_size=80))
def test_bins_are_of_equal_size_and_in_order(values: list[float]) -> None:
    bins = equal_bins(np.array(values))
    counts = np.bincount(bins, minlength=BINS)
    assert counts.max() - counts.min() <= 1 and len(counts) == BINS
    assert (np.diff(bins[np.argsort(values, kind="stable")]) >= 0).all()


def test_a_correlation_without_variation_is_not_a_number() -> None:
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3])) and np.isnan(rank_correlation([1, 2], [1, 2]))
    assert rank_correlation([1, 2, 3], [1, 8, 27]) == pytest.approx(1)
