"""The generated benchmarks: their structure is what VLMEvalKit scores, their content what the pictures show."""

from __future__ import annotations

import base64
from collections import Counter

import pytest

from eval.benchmarks import check_benchmarks, is_official, maker, mmbench, pope, write_tsv
from eval.results import PERCEPTION, REASONING
from eval.tsv import validate
from prior.config import Preset
from prior.corpus import scenes
from prior.errors import UserError

ITEMS = 84
NAMES = ["MME", "POPE", "MMBench", "MMStar", "SEEDBench"]


def make(name, items, seed, size=24):
    return maker(name).rows(items, seed, 0, size)


@pytest.fixture(scope="module")
def made():
    return {name: make(name, ITEMS, 1) for name in NAMES}


def pictured(row):
    """The index of a row's picture."""
    name = row.get("source") or row["image_path"].rpartition("/")[2].removesuffix(".png")
    return int(name.removeprefix("val-"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_valid_deterministic_and_shows_corpus_pictures(made, name, tmp_path):
    rows = made[name]
    assert rows == make(name, ITEMS, 1)
    assert rows != make(name, ITEMS, 2)
    assert len(rows) == ITEMS * (4 if name == "MMBench" else 1)
    write_tsv(rows, tmp_path / f"{name}.tsv")
    assert len(validate(tmp_path / f"{name}.tsv")) == len(rows)
    for row in rows[:: len(rows) // 20]:
        assert base64.b64decode(row["image"]) == scenes.pair("val", pictured(row), 0, 24)["image"]


@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_items_are_those_that_fill_every_category(made, name):
    every = {row["category"] for row in made[name]}
    fewest, fewer = ({row["category"] for row in make(name, maker(name).FEWEST - less, 1)} for less in (0, 1))
    assert fewer < fewest == every


FOLDER = {"corpus": {"kind": "folder", "folder": "pics"}, "tune": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"benchmarks": {"MME": {"items": 13}}}, "benchmarks.MME.items: 13 cannot fill every category; ask for 14"),
        ({"tune": None, "benchmarks": {"MME": {}}}, "benchmarks.MME: with `tune: null` no model is taught to answer"),
        ({"benchmarks": {"MME": {"answer": "caption"}}}, "benchmarks.MME.answer: captions are scored by CHAIR alone"),
        ({"benchmarks": {"CHAIR": {}}}, "benchmarks.CHAIR.answer: it is about captions; write `answer: caption`"),
        ({**FOLDER, "benchmarks": {"CHAIR": {"answer": "caption"}}}, "benchmarks.CHAIR: which objects are in these"),
        ({"benchmarks": {"Mine": {"source": "generated"}}}, "benchmarks.Mine.source: there is no .*/mine.py"),
        ({**FOLDER, "benchmarks": {"MMBench": {}}}, "benchmarks.MMBench: it is made from generated scenes"),
        (
            {**FOLDER, "benchmarks": {"MME": {"source": "generated"}}},
            "benchmarks.MME: it is made from generated scenes; .* write `source: official`",
        ),
    ],
)
def test_a_benchmark_that_cannot_be_made_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_benchmarks(Preset.model_validate({"name": "mine", "scales": ["1k", "2k", "4k"], **settings}))
    check_benchmarks(Preset(name="mine", benchmarks={"Own": {"items": 1, "answer": "likelihood"}}))


def test_what_can_be_made_here_is_made_here_unless_the_preset_says_otherwise():
    def fetched(**settings):
        preset = Preset.model_validate({"name": "mine", "scales": ["1k", "2k", "4k"], **settings})
        return [name for name in preset.benchmarks if is_official(name, preset)]

    five = {name: {} for name in ("MME", "POPE", "MMBench_DEV_EN", "MMStar", "SEEDBench_IMG")}
    assert fetched(benchmarks=five) == ["MMBench_DEV_EN", "SEEDBench_IMG"]
    assert fetched(benchmarks=five, **FOLDER) == list(five)
    assert fetched(benchmarks={"MME": {"source": "official"}, "Mine": {}, "RealWorldQA": {"source": "official"}}) == [
        "MME",
        "RealWorldQA",
    ]


def test_mme_asks_one_yes_and_one_no_of_each_picture(made):
    pairs = {}
    for row in made["MME"]:
        pairs.setdefault((row["category"], row["image_path"]), []).append(row["answer"])
    assert all(sorted(answers) == ["No", "Yes"] for answers in pairs.values())
    categories = {category for category, _ in pairs}
    assert categories <= PERCEPTION | REASONING
    assert len(categories & PERCEPTION) == 5 and len(categories & REASONING) == 2
    first = [answers[0] for answers in pairs.values()]
    assert 10 < first.count("Yes") < 32


def test_pope_asks_about_objects_of_the_right_sort(made):
    seen = Counter()
    for row in made["POPE"]:
        shown = scenes.scene("val", pictured(row), 0)
        colour, shape = row["question"].split()[3:5]
        present = {(thing.colour, thing.shape) for thing in shown.things}
        assert ((colour, shape) in present) == (row["answer"] == "Yes")
        seen[row["category"], row["answer"]] += 1
        if row["category"] == "popular":
            assert (colour, shape) in scenes.POPULAR
        if row["answer"] == "No" and row["category"] == "adversarial":
            assert any(colour == c for c, _ in present) and any(shape == s for _, s in present)
    assert set(seen.values()) == {ITEMS // 6} and len(seen) == 6


@pytest.mark.parametrize("name", ["MME", "POPE"])
def test_held_out_combinations_are_asked_about_as_often_when_absent(name):
    """Otherwise a model that denies whatever it never saw, or believes in it, would beat chance without a picture."""
    counts = Counter()
    for row in make(name, 700, 0, 8):
        words = tuple(row["question"].removesuffix(" Please answer yes or no.").strip("?").split())
        if words[:2] == ("Is", "there") and words[-1] == "picture" and len(words) == 8:
            counts[row["answer"], words[3:5] in scenes.HELD_OUT] += 1
    assert counts["Yes", True] == counts["No", True] > 0
    assert counts["Yes", False] == counts["No", False] > 0


def test_the_name_of_an_object_does_not_tell_whether_it_is_there():
    """The best answer per name and category, learned on half of the questions, is no better than chance on the rest."""
    seen, right = Counter(), Counter()
    for row in pope.rows(2400, 0, 0, 8):
        name, yes = (row["category"], row["question"]), row["answer"] == "Yes"
        if row["index"] < 1200:
            seen[name] += 1 if yes else -1
        elif seen[name]:
            right[row["category"], (seen[name] > 0) == yes] += 1
    for category in ("random", "popular", "adversarial"):
        asked = right[category, True] + right[category, False]
        assert abs(right[category, True] / asked - 0.5) < 0.1, category  # four standard errors


def test_mmbench_rotations_ask_the_same(made):
    rows = {row["index"]: row for row in made["MMBench"]}
    for question in range(ITEMS):
        group = [rows[question + step * mmbench.ROTATION] for step in range(4)]
        assert len({row["image"] for row in group}) == len({row["question"] for row in group}) == 1
        assert len({row[row["answer"]] for row in group}) == 1
        assert len({frozenset(row[letter] for letter in "ABCD") for row in group}) == 1
        assert {row["answer"] for row in group} == set("ABCD")
        assert len({row["A"] for row in group}) == 4


@pytest.mark.parametrize("name", ["MMBench", "MMStar", "SEEDBench"])
def test_one_option_in_four_is_a_held_out_combination_where_options_differ_in_it(name):
    """And it is right as often as any other: a model that never saw it gains nothing by avoiding it."""
    hits, shown = 0, 0
    for row in make(name, 700, 0, 8)[:700]:
        options = {letter: tuple(row[letter].split()) for letter in "ABCD"}
        unseen = [letter for letter, option in options.items() if option in scenes.HELD_OUT]
        if len(options["A"]) == 2 and options["A"][0] in scenes.COLOURS:
            assert len(unseen) == 1
            shown += 1
            hits += unseen == [row["answer"]]
    assert shown > 60 and abs(hits / shown - 0.25) < 0.15


def test_categories_are_the_namesakes():
    assert {row["category"] for row in make("MMStar", 12, 0, 8)} == {
        "coarse perception",
        "fine-grained perception",
        "instance reasoning",
        "logical reasoning",
        "math",
        "science & technology",
    }
