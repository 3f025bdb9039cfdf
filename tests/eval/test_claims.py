"""The paper's claims: a known truth gets its verdicts, one rule serves all, what people read is re-derived."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.claims import CLAIMS, show, table, write_claims
from eval.claims.evidence import UNIT, Evidence, mean_of, pairs
from eval.claims.rule import CONTRADICTED, NOT_SHOWN, NOT_TESTABLE, SHOWN, Claim, judge, untestable, verdict
from eval.results import averages, final, select
from eval.statistics import holm, sign_flip
from eval.study import Missing, Study
from prior.config import Statistics
from prior.errors import UserError
from tests.eval import synthetic

ROOT = Path(__file__).resolve().parents[2]
# Never tested, whatever the numbers; a plateau of no gain is none either.
UNTESTED = {"share", "tokenizers", "reference", "bias"}


@pytest.fixture(scope="module")
def studies() -> dict[int, Study]:
    # A draw in which every effect is seen: how predictable a curve is, six seeds do not always tell.
    return {sign: synthetic.study(sign, rng_seed=5) for sign in (1, 0, -1)}


@pytest.fixture(scope="module")
def judged(studies: dict[int, Study]) -> dict[int, pd.DataFrame]:
    return {sign: table(study).set_axis([claim.key for claim in CLAIMS]) for sign, study in studies.items()}


def test_a_known_truth_gets_its_verdicts(judged: dict[int, pd.DataFrame]) -> None:
    for sign, expected in ((1, SHOWN), (0, NOT_SHOWN), (-1, CONTRADICTED)):
        untested = UNTESTED | (set() if sign == 1 else {"alpha two"})
        for key, row in judged[sign].iterrows():
            assert row.verdict == (NOT_TESTABLE if key in untested else expected), (sign, key)


def test_claims_agree_with_plain_computations(studies: dict[int, Study], judged: dict[int, pd.DataFrame]) -> None:
    study, found = studies[1], judged[1]
    losses = select(study.compared, picture="with", metric="loss_other").pivot(
        index=UNIT, columns="objective", values="value"
    )
    gaps = losses.prior - losses.ntp
    by_seed = gaps.groupby("seed").mean()
    row = found.loc["other"]
    assert row.value == pytest.approx(gaps.mean()) and row.n == len(gaps) == 60
    assert (row.low, row.high) == pytest.approx(stats.t.interval(0.95, 5, loc=gaps.mean(), scale=stats.sem(by_seed)))
    assert row.p == sign_flip(gaps, 0)

    curves = select(study.compared, picture="with", metric="loss").set_index(["objective", "arch", "seed"]).sort_index()
    slopes = {
        key: -np.polyfit(np.log(part.scale_tokens), np.log(part.value), 1)[0]
        for key, part in curves.groupby(level=[0, 1, 2])
    }
    steeper = [slopes["prior", arch, seed] - slopes["ntp", arch, seed] for arch, seed in _cells()]
    row = found.loc["loss exponent"]
    assert row.value == pytest.approx(np.mean(steeper), rel=0.02) and row.n == 12

    chair = select(study.compared, picture="with", metric="chair_i_equal").groupby("objective").value.mean()
    assert found.loc["hallucination"].value == pytest.approx(chair["prior"] - chair["ntp"])
    choice = select(study.compared, picture="with", benchmark="CaptionChoice", metric="accuracy", scale_tokens=400_000)
    best = choice.groupby(["objective", "arch", "seed"]).value.max().groupby("objective").mean()
    assert found.loc["best"].value == pytest.approx(100 * (best["prior"] / best["ntp"] - 1))
    assert found.loc["best"].paper == "+18.8"
    asked = [score for score in study.columns if score.in_paper]
    means: dict[tuple[str, str], list[float]] = {}
    for (objective, arch, _), part in select(final(study.compared), picture="with").groupby(
        ["objective", "arch", "scale_tokens"]
    ):
        means.setdefault((objective, arch), []).extend(averages(part, asked)["corrected"])
    gains = [np.mean(means["prior", arch]) - np.mean(means["ntp", arch]) for arch in ("hlvlm", "ulvlm")]
    assert found.loc["corrected"].value == pytest.approx(min(gains)) and found.loc["corrected"].n == 60
    assert found.loc["corrected"].runs == "hlvlm, ulvlm: ntp, prior; every scale"
    assert found.loc["alpha four"].runs == "hlvlm, ulvlm: prior, prior-a4; 400k"
    assert found.runs[["share", "ranking"]].eq("").all()


def test_both_settings_are_two_tests_of_which_the_worse_counts(studies: dict[int, Study]) -> None:
    """A gain in one setting alone, twice as large, is none in both, though the mean over both is the same."""
    study = studies[1]
    runs = study.metrics[study.metrics.arch != "baseline"]
    for worse, expected in (("ntp", NOT_SHOWN), ("prior", SHOWN)):
        hidden = (runs.arch == "ulvlm") & (runs.objective == "prior")
        rows = runs[~hidden]
        own = select(rows, arch="ulvlm", objective="ntp") if worse == "ntp" else runs[hidden]
        rows = pd.concat([rows, own.assign(objective="prior"), select(study.metrics, arch="baseline")])
        if worse == "ntp":
            # As NTP, but for noise on either side.
            mine = (rows.arch == "ulvlm") & (rows.objective == "prior") & (rows.picture == "with")
            noise = np.random.default_rng(0).normal(1, 0.003, int(mine.sum()))
            rows.loc[mine, "value"] *= noise
        (claim,) = (claim for claim in CLAIMS if claim.key == "corrected")
        evidence = claim.measure(replace(study, metrics=rows.reset_index(drop=True)))
        assert verdict(claim, evidence, evidence.p, 0.05) == expected and evidence.n == 60
    one = replace(study, metrics=study.metrics[study.metrics.arch != "ulvlm"])
    with pytest.raises(Missing, match="one setting was trained, H-LVLM, not both"):
        claim.measure(one)
    # Four pairs in each setting are too few, though eight are not.
    assert untestable(replace(evidence, n=8, each=4), 0.05).startswith("4 pairs of trainings give no p below 0.12")


def test_a_plateau_is_two_tests_of_which_the_worse_counts(studies: dict[int, Study]) -> None:
    """α = 2 moved beyond half the gain, to either side."""
    plateau = next(claim for claim in CLAIMS if claim.key == "alpha two")
    study = studies[1]
    two = (study.metrics.objective == "prior-a2") & study.metrics.metric.isin(["accuracy", "f1", "perception"])
    for factor, expected in ((1.0, SHOWN), (0.7, CONTRADICTED), (1.3, CONTRADICTED)):
        moved = study.metrics.assign(value=study.metrics.value.mask(two, study.metrics.value * factor))
        evidence = plateau.measure(replace(study, metrics=moved))
        assert verdict(plateau, evidence, evidence.p, 0.05) == expected, factor


def test_what_cannot_be_tested_says_why(studies: dict[int, Study]) -> None:
    study = studies[1]
    one = synthetic.study(seeds=1)
    found = table(one).set_axis([claim.key for claim in CLAIMS])
    assert set(found.verdict.drop("ranking")) == {NOT_TESTABLE}
    assert found.loc["other"].why == "one seed gives no interval" and np.isfinite(found.loc["other"].value)
    assert "no benchmark can tell models apart: one seed" in found.loc["hlvlm"].why
    assert found.p.drop("ranking").isna().all() and found.p_holm["ranking"] == found.p["ranking"]
    few = _of(synthetic.study(scales=(100_000, 200_000, 400_000), seeds=2), "loss exponent", "alpha one")
    assert "needs 4 data scales" in few.loc["loss exponent"].why
    assert few.loc["alpha one"].why == "4 pairs of trainings give no p below 0.12"
    bare = replace(study, stored={}, metrics=study.metrics[study.metrics.benchmark.isin(["heldout", "CaptionChoice"])])
    for key, why in {
        "hlvlm": "none of the paper's benchmarks was asked",
        "jitter": "training.parquet",
        "ranking": "words.parquet",
        "tracking": "mutual.parquet",
        "hallucination": "no captions were asked for",
    }.items():
        row = _of(bare, key).loc[key]
        assert row.verdict == NOT_TESTABLE and why in row.why
    silent = study.metrics.assign(n_items=study.metrics.n_items.mask(study.metrics.metric == "chair_i_equal", 0))
    with pytest.raises(Missing, match="no object at all"):
        _claim("hallucination").measure(replace(study, metrics=silent))


def test_what_is_lacking_is_said_and_never_left_out(studies: dict[int, Study]) -> None:
    study = studies[1]
    models = study.metrics.arch != "baseline"
    other = study.metrics.assign(objective=study.metrics.objective.replace("prior", "mine"))
    renamed = replace(study, metrics=other, stored={})
    for key in ("hlvlm", "other", "loss exponent", "hallucination"):
        assert _of(renamed, key).loc[key].why == "PRIOR was not trained at every scale"
    gone = study.metrics[~(models & (study.metrics.benchmark == "MMStar") & (study.metrics.scale_tokens == 50_000))]
    for key in ("hlvlm", "corrected"):
        with pytest.raises(Missing, match="MMStar not asked of .* at 50k caption tokens"):
            _claim(key).measure(replace(study, metrics=gone))
    training, mutual = study.stored["training"], study.stored["mutual"]
    last = (training.arch == "ulvlm") & (training.seed == 2) & (training.objective == "ntp")
    short = training.assign(judged=training.judged.mask(last, 0), spikes=training.spikes.mask(last, 0))
    with pytest.raises(Missing, match="too short"):
        _claim("spikes").measure(replace(study, stored={"training": short}))
    with pytest.raises(Missing, match="no other seed"):
        _claim("gaining").measure(replace(study, stored={"mutual": mutual.assign(judge=mutual.seed)}))
    # Error that soars beyond what a fit allows.
    steep = (study.metrics.metric == "accuracy") & models & (study.metrics.picture == "with")
    steps = np.log2(study.metrics.scale_tokens.clip(lower=25_000) / 25_000)
    soaring = study.metrics.assign(value=study.metrics.value.mask(steep, 100 - 100 * 12.0**-steps))
    with pytest.raises(Missing, match="through the other scales does not fit: hlvlm/ntp seed0"):
        _claim("predictable").measure(replace(study, metrics=soaring.assign(value=soaring.value.clip(0.1))))


def test_a_value_and_a_p_that_point_apart_show_nothing() -> None:
    claim = _claim("ranking")
    evidence = Evidence(0.7, 0.6, 0.8, 1e-5, 60, "captions", 60)
    assert verdict(claim, evidence, 1e-4, 0.05) == SHOWN
    assert verdict(claim, replace(evidence, agrees=False), 1e-4, 0.05) == NOT_SHOWN
    # Two captions of many words rank them well; the other ten, of two words each, have them the other way round.
    many = {"relevant": [True] * 9 + [False] * 9, "weight": [0.9] * 9 + [0.1] * 9}
    two = {"relevant": [True, False], "weight": [0.5, 0.9]}
    words = pd.concat(pd.DataFrame(many if number < 2 else two).assign(caption=number) for number in range(12))
    stored = {"words": words.astype({"relevant": "boolean"})}
    found = claim.measure(replace(synthetic.study(scales=(25_000,), seeds=1), stored=stored))
    assert found.value == pytest.approx((18 * 18 + 18 * 10 / 2 + 10 * 18) / 28**2)
    assert not found.agrees and "the other way" in found.note


def test_words_of_unknown_relevance_and_benchmarks_at_chance(studies: dict[int, Study]) -> None:
    study = studies[1]
    unknown = study.stored["words"].assign(relevant=pd.array([pd.NA] * 600, "boolean"))
    blind = study.metrics.copy()
    seen = (
        (blind.picture == "with")
        & blind.benchmark.isin([*synthetic.YES_NO, *synthetic.MCQ])
        & (blind.arch != "baseline")
    )
    hidden = study.metrics[study.metrics.picture == "without"].groupby(["benchmark", "metric"]).value.mean()
    keys = pd.MultiIndex.from_frame(blind.loc[seen, ["benchmark", "metric"]])
    noise = np.random.default_rng(0).normal(0, 0.01, seen.sum())
    blind.loc[seen, "value"] = hidden.reindex(keys).to_numpy() + noise
    told = ("hlvlm", "ulvlm", "corrected", "best", "alpha four", "error exponent", "data", "predictable")
    found = _of(replace(study, stored={"words": unknown}, metrics=blind), "ranking", *told)
    assert found.loc["ranking"].why == "it is not known which words the picture decides"
    for key in told:
        assert found.loc[key].verdict == NOT_TESTABLE and "no benchmark can tell models apart" in found.loc[key].why


@given(
    st.floats(-1, 1),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
    st.floats(0, 1),
    st.booleans(),
)
def test_the_rule_is_symmetric(value: float, below: float, above: float, p: float, side: bool) -> None:
    """What would be shown of a claim is contradicted of its opposite, and nothing else depends on which is claimed."""
    evidence = Evidence(value, value - below, value + above, p, 60, "pairs", 6)
    claim = Claim("key", "said", "statistic", lambda study: evidence, "more", "source", above=side)
    ours, opposite = (verdict(each, evidence, p, 0.05) for each in (claim, replace(claim, above=not side)))
    assert {ours, opposite} in ({NOT_SHOWN}, {SHOWN, CONTRADICTED})
    assert (ours == NOT_SHOWN) == (not p < 0.05 or value - below <= 0 <= value + above)
    if ours == SHOWN:
        assert (value > 0) == side


def test_an_interval_without_bounds_is_on_no_side() -> None:
    claim = Claim("key", "said", "statistic", lambda study: evidence, "more", "source")
    evidence = Evidence(1.0, np.nan, np.nan, 0.001, 60, "pairs", 6)
    assert verdict(claim, evidence, 0.001, 0.05) == NOT_SHOWN
    assert untestable(evidence, 0.05) == ""
    assert untestable(replace(evidence, n=5), 0.05) == "5 pairs give no p below 0.062"
    assert untestable(replace(evidence, n=6), 0.05) == ""
    assert untestable(replace(evidence, groups=1), 0.05) == "one seed gives no interval"


def test_only_tests_count_for_holm(studies: dict[int, Study], judged: dict[int, pd.DataFrame]) -> None:
    def of(p: float) -> Claim:
        evidence = Evidence(1.0, 0.5, 1.5, p, 60, "pairs", 6)
        return Claim(f"{p}", "said", "statistic", lambda study: evidence, "more", "source")

    untested = Claim("none", "said", "none", lambda study: replace(of(1e-9).measure(study), fixed="why"), "", "source")
    found = judge([of(0.01), untested, of(0.04), of(0.03), of(0.005)], studies[1])
    assert found.p_holm.drop(1).to_list() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert list(found.verdict) == [SHOWN, NOT_TESTABLE, NOT_SHOWN, NOT_SHOWN, SHOWN]
    assert pd.isna(found.p[1]) and pd.isna(found.p_holm[1]) and found.value[1] == 1.0
    whole = judged[0]
    assert whole.p_holm.to_numpy() == pytest.approx(holm(whole.p), nan_ok=True)


def test_no_claim_is_wrongly_decided_too_often() -> None:
    """Seeds that move all their units together: the interval is over seeds, so the rule holds though the p does not."""
    rng, wrong, trials = np.random.default_rng(5), {"p": 0, "rule": 0}, 400
    index = pd.MultiIndex.from_product([["hlvlm", "ulvlm"], [1], range(6)], names=UNIT)
    study: Any = type("Named", (), {"settings": Statistics()})()
    claim = Claim("key", "said", "statistic", lambda study: evidence, "more", "source")
    for _ in range(trials):
        units = pd.Series(np.tile(rng.standard_normal(6), 2) + 0.3 * rng.standard_normal(12), index=index)
        evidence = mean_of(units, study)
        wrong["p"] += evidence.p < 0.05
        wrong["rule"] += verdict(claim, evidence, evidence.p, 0.05) != NOT_SHOWN
    assert wrong["p"] > 0.1 * trials
    assert wrong["rule"] <= 0.07 * trials


def test_a_missing_pair_is_named() -> None:
    rows = pd.DataFrame(
        [("hlvlm", objective, 1, seed, 1.0) for objective, seed in product(("ntp", "prior"), range(3))],
        columns=["arch", "objective", "scale_tokens", "seed", "value"],
    )
    assert len(pairs(rows)[0]) == 3
    with pytest.raises(UserError, match="hlvlm/prior/1/seed2 is missing"):
        pairs(rows.iloc[:-1])
    both = rows[rows.seed > 0]
    more = pd.concat([rows, both.assign(scale_tokens=2)])
    with pytest.raises(UserError, match="hlvlm/prior/2/seed0 is missing"):
        pairs(more)


def test_files_hold_what_was_judged(studies: dict[int, Study], tmp_path: Path) -> None:
    """Every number in the text is one of the table's."""
    found = write_claims(studies[1], tmp_path)
    read = pd.read_csv(tmp_path / "claims.csv")
    assert list(read.columns)[:9] == ["claim", "statistic", "paper", "value", "low", "high", "n", "p", "verdict"]
    assert list(read.claim) == [claim.claim for claim in CLAIMS]
    for column in ("value", "low", "high", "p", "p_holm"):
        assert read[column].to_numpy() == pytest.approx(found[column].to_numpy(), nan_ok=True, rel=1e-9)
    text, page = ((tmp_path / f"claims.{ending}").read_text(encoding="utf-8") for ending in ("md", "html"))
    cells = show(read.astype({"n": "Int64"}).fillna({"why": ""}))[0].cells
    for row, line in zip(cells.itertuples(index=False), text.splitlines()[4:], strict=False):
        assert line == "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        assert f"<td>{row.here}</td>" in page


def test_the_page_that_states_the_rule_names_every_claim() -> None:
    text = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:4]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    told = [[claim.claim, claim.statistic, claim.source] for claim in CLAIMS]
    assert [row for row in rows if row[0] in {claim.claim for claim in CLAIMS}] == told
    for word in (SHOWN, NOT_SHOWN, CONTRADICTED, NOT_TESTABLE):
        assert re.search(rf"\*\*{word}\*\*", text)


def _claim(key: str) -> Claim:
    return next(claim for claim in CLAIMS if claim.key == key)


def _of(study: Study, *keys: str) -> pd.DataFrame:
    """The rows of some claims, by their keys."""
    claims = [claim for claim in CLAIMS if claim.key in keys]
    return judge(claims, study).set_axis([claim.key for claim in claims])


def _cells() -> list[tuple[str, int]]:
    return list(product(("hlvlm", "ulvlm"), range(6)))
