"""The generated world: its pictures, captions and questions."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2

from prior.corpus import questions, scenes
from prior.corpus.captions import classified_caption, join
from prior.corpus.phrases import NUMBERS
from prior.corpus.world import BACKGROUNDS, COLUMNS, ROWS, draw, generator

IMAGE_SIZE = 48
SINGULAR = {name: name for name in scenes.SHAPES} | {f"{name}s": name for name in scenes.SHAPES} | {"crosses": "cross"}


# An independent reader of the questions: it knows only their words and the scene's things.


def things_called(scene, words):
    """The things that fit words such as 'red circle', 'circles' or 'red thing'."""
    found = list(scene.things)
    for word in words.split():
        if word in SINGULAR:
            found = [thing for thing in found if thing.shape == SINGULAR[word]]
        elif word in scenes.COLOURS:
            found = [thing for thing in found if thing.colour == word]
        elif word not in ("thing", "things"):
            raise AssertionError(f"unknown word '{word}'")
    return found


def the(scene, words):
    found = things_called(scene, words)
    assert len(found) == 1, f"'{words}' does not single out a thing of {scene}"
    return found[0]


def answer_of(scene, text):
    """The right answer, worked out from the words: a bool for yes/no, otherwise the set of options that are right."""
    text = text.removesuffix(" Please answer yes or no.")
    rules = {
        r"Is there an? (.+) in the picture\?": lambda a: bool(things_called(scene, a)),
        r"(?:Is|Are) there (one|two|three|four) (.+) in the picture\?": lambda n, a: (
            len(things_called(scene, a)) == NUMBERS.index(n)
        ),
        r"Is the (.+) at the (.+ .+)\?": lambda a, p: place(the(scene, a)) == p,
        r"Is the background (.+)\?": lambda b: scene.background == b,
        r"Is the (.+) (left of|right of|above|below) the (.+)\?": lambda a, r, b: lies(the(scene, a), r, the(scene, b)),
        r"Is the (.+) larger than the (.+)\?": lambda a, b: (
            (the(scene, a).size, the(scene, b).size) == ("large", "small")
        ),
        r"Is the (.+) smaller than the (.+)\?": lambda a, b: (
            (the(scene, a).size, the(scene, b).size) == ("small", "large")
        ),
        r"Are there more (.+) than (.+) in the picture\?": lambda a, b: (
            len(things_called(scene, a)) > len(things_called(scene, b))
        ),
        r"Are the (.+) and the (.+) the same color\?": lambda a, b: the(scene, a).colour == the(scene, b).colour,
        r"If one thing is (added|taken away), (?:is|are) there (\w+) things? in the picture\?": lambda c, n: (
            after(scene, c) == n
        ),
        r"Is the (.+) (\w+)\?": lambda a, w: w in (the(scene, a).size, the(scene, a).texture, the(scene, a).colour),
        r"Which of these is in the picture\?": lambda: {f"{t.colour} {t.shape}" for t in scene.things},
        r"What color is the background\?": lambda: {scene.background},
        r"What color is the (.+)\?": lambda a: {the(scene, a).colour},
        r"What shape is the (.+)\?": lambda a: {the(scene, a).shape},
        r"Where is the (.+) from the (.+)\?": lambda a, b: {
            side
            for side, words in (("left", "left of"), ("right", "right of"), ("above", "above"), ("below", "below"))
            if lies(the(scene, a), words, the(scene, b))
        },
        r"Where is the (.+)\?": lambda a: {place(the(scene, a))},
        r"How many (.+) are in the picture\?": lambda a: {NUMBERS[len(things_called(scene, a))]},
        r"Which thing is (\w+)\?": lambda w: {
            f"{t.colour} {t.shape}" for t in scene.things if w in (t.size, t.texture)
        },
        r"If one thing is (added|taken away), how many things are in the picture\?": lambda c: {after(scene, c)},
    }
    for pattern, rule in rules.items():
        if match := re.fullmatch(pattern, text):
            return rule(*match.groups())
    raise AssertionError(f"no rule reads '{text}'")


def check_evidence(scene, text, said):
    """What is said to a yes/no question: the evidence is true of the scene, and with the question it gives the answer.

    For each form of question, what can truly be said, and whether what was said means yes.
    """
    evidence, given = re.fullmatch(r"([a-z, ]+): (Yes|No)", said).groups()
    # VLMEvalKit takes the answer from the words.
    assert not {"yes", "no"} & set(re.findall(r"\w+", evidence))
    counted = {name: NUMBERS[len(things_called(scene, name))] for name in scenes.SHAPES}
    sides = ("left of", "right of", "above", "below")

    def seen(words):
        """Of the things that are there: those that share most with the asked ones, the shape before the colour."""
        *colour, shape = words.split()
        by_shape, by_colour = things_called(scene, shape), things_called(scene, " ".join(colour))
        both = [thing for thing in by_shape if thing in by_colour]
        near = both or by_shape or (by_colour if colour else []) or scene.things
        return {f"{thing.colour} {thing.shape}" if colour else thing.shape for thing in near[:1]}

    def which(a, b, key, most):
        return {max(a, b, key=key) if most else min(a, b, key=key)}

    rules = {
        r"Is there an? (.+) in the picture\?": lambda a: (seen(a), evidence == a),
        r"(?:Is|Are) there (\w+) things? in the picture\?": lambda n: ({NUMBERS[len(scene.things)]}, evidence == n),
        r"(?:Is|Are) there (\w+) (\w+) in the picture\?": lambda n, a: ({counted[SINGULAR[a]]}, evidence == n),
        r"Is the (.+) at the (.+ .+)\?": lambda a, p: ({place(the(scene, a))}, evidence == p),
        r"Is the background (.+)\?": lambda b: ({scene.background}, evidence == b),
        r"Is the (.+) (left of|right of|above|below) the (.+)\?": lambda a, r, b: (
            {", ".join(side for side in sides if lies(the(scene, a), side, the(scene, b)))},
            r in evidence.split(", "),
        ),
        r"Is the (.+) (larger|smaller) than the (.+)\?": lambda a, r, b: (
            which(a, b, lambda words: the(scene, words).size == "large", r == "larger"),
            evidence == a,
        ),
        r"Are there more (.+) than (.+) in the picture\?": lambda a, b: (
            which(a, b, lambda words: len(things_called(scene, words)), True),
            evidence == a,
        ),
        r"Are the (.+) and the (.+) the same color\?": lambda a, b: (
            {f"{the(scene, a).colour}, {the(scene, b).colour}"},
            len(set(evidence.split(", "))) == 1,
        ),
        r"If one thing is (added|taken away), (?:is|are) there (\w+) things? in the picture\?": lambda c, n: (
            {after(scene, c)},
            evidence == n,
        ),
        r"Is the (.+) (\w+)\?": lambda a, w: (
            {
                getattr(the(scene, a), kind)
                for kind, values in (
                    ("size", scenes.SIZES),
                    ("texture", scenes.TEXTURES),
                    ("colour", scenes.COLOURS),
                )
                if w in values
            },
            evidence == w,
        ),
    }
    text = text.removesuffix(" Please answer yes or no.")
    for pattern, rule in rules.items():
        if match := re.fullmatch(pattern, text):
            true, yes = rule(*match.groups())
            assert {evidence} == true and yes == (given == "Yes"), (text, said, scene)
            return
    raise AssertionError(f"no rule reads '{text}'")


def place(thing):
    return ("top", "middle", "bottom")[thing.row] + " " + ("left", "center", "right")[thing.column]


def lies(a, relation, b):
    across, down = a.column - b.column, a.row - b.row
    return {"left of": across < 0, "right of": across > 0, "above": down < 0, "below": down > 0}[relation]


def after(scene, change):
    return NUMBERS[len(scene.things) + (1 if change == "added" else -1)]


# Pictures.


def test_a_pair_depends_on_its_seed_split_and_index_alone():
    whole = list(scenes.pairs("train", 0, 12, 3, IMAGE_SIZE))
    parts = [*scenes.pairs("train", 8, 12, 3, IMAGE_SIZE), *scenes.pairs("train", 0, 8, 3, IMAGE_SIZE)]
    assert sorted(parts, key=lambda row: row["id"]) == whole
    assert [row["id"] for row in whole][:2] == ["train-000000", "train-000001"]
    assert scenes.pair("val", 3, 3, IMAGE_SIZE)["image"] != whole[3]["image"]
    assert scenes.pair("train", 3, 4, IMAGE_SIZE)["caption"] != whole[3]["caption"]
    assert list(scenes.texts(5, 7, 3)) == [
        {"id": f"text-{index:06d}", "text": scenes.text_document(index, 3)} for index in (5, 6)
    ]
    assert list(questions.tuning_questions(20, 0, 50, 3)) == list(questions.tuning_questions(30, 0, 50, 3))[:20]


def test_scenes_keep_the_grid_and_the_held_out_combinations():
    for index in range(1500):
        for split in ("train", "val"):
            shown = scenes.scene(split, index, 0)
            cells = [(thing.row, thing.column) for thing in shown.things]
            assert 1 <= len(cells) <= 4 and len(set(cells)) == len(cells)
            seen = {(thing.colour, thing.shape) for thing in shown.things}
            assert split == "val" or not seen & scenes.HELD_OUT
    assert {colour for colour, _ in scenes.HELD_OUT} == set(scenes.COLOURS)


@pytest.mark.parametrize("size", [48, 96])
def test_a_thing_is_drawn_in_its_colour_in_its_cell_and_nowhere_else(size):
    rng = np.random.default_rng(0)
    cell = size // 3
    for shape, colour, kind in itertools.product(scenes.SHAPES, scenes.COLOURS, scenes.SIZES):
        row, column = rng.integers(0, 3, 2)
        shown = scenes.Scene((scenes.Thing(shape, colour, kind, "plain", row, column),), "gray")
        picture = scenes.render(shown, size, rng)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        saturation = np.ptp(picture.astype(int), axis=2) > 40
        inside = np.zeros((size, size), bool)
        inside[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = True
        assert saturation[inside].mean() > 0.08 and not saturation[~inside].any()
        mean = picture[saturation].mean(0)
        nearest = min(scenes.COLOURS, key=lambda name: np.linalg.norm(mean * 1.05 - scenes.COLOURS[name]))
        assert nearest == colour


def test_every_shape_size_and_texture_looks_different_at_16_pixels_a_cell():
    plain = {
        key: scenes.render(
            scenes.Scene((scenes.Thing(key[0], "blue", *key[1:], 1, 1),), "white"), 48, np.random.default_rng(1)
        ).astype(float)
        for key in itertools.product(scenes.SHAPES, scenes.SIZES, scenes.TEXTURES)
    }
    for (first, one), (second, other) in itertools.combinations(plain.items(), 2):
        changed = (abs(one - other).max(2) > 60).sum()
        assert changed >= (4 if first[:2] == second[:2] else 16), f"{first} and {second} differ in {changed} pixels"


def test_a_pair_holds_a_png_of_the_asked_size():
    image = Image.open(io.BytesIO(scenes.pair("val", 7, 0, 60)["image"]))
    assert image.format == "PNG" and image.size == (60, 60) and image.mode == "RGB"


# Captions.


def test_relevant_spans_are_the_words_that_the_picture_decides():
    visual = {*SINGULAR, *scenes.COLOURS, *scenes.SIZES, *scenes.TEXTURES, *BACKGROUNDS, *ROWS, *COLUMNS, *NUMBERS[1:]}
    visual |= {"above", "below"}
    for row in scenes.pairs("train", 0, 400, 0, 24):
        caption = row["caption"]
        assert caption == " ".join(caption.split())
        for start, end in row["relevant"]:
            assert caption[start:end] in visual
            assert start == 0 or caption[start - 1] == " "
            assert end == len(caption) or caption[end] in " ,:"
        # Outside the spans such words stand only in names and stock phrases.
        covered = {at for start, end in row["relevant"] for at in range(start, end)}
        for match in re.finditer(r"[a-z]+", caption):
            if match[0] in (*scenes.COLOURS, *scenes.SIZES, *scenes.TEXTURES, *ROWS, *BACKGROUNDS):
                assert match.start() in covered, caption


def test_captions_say_what_is_there():
    pattern = re.compile(
        rf"(?:(small|large) )?(?:(plain|striped|dotted) )?({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})\b"
        r"(?: (?:at|in) the (top|middle|bottom) (left|center|right))?"
    )
    found = 0
    for index in range(1500):
        shown = scenes.scene("val", index, 0)
        caption = scenes.pair("val", index, 0, 12)["caption"]
        for size, texture, colour, shape, row, column in pattern.findall(caption):
            found += 1
            assert any(
                (thing.colour, thing.shape) == (colour, shape)
                and size in ("", thing.size)
                and texture in ("", thing.texture)
                and (not row or place(thing) == f"{row} {column}")
                for thing in shown.things
            ), (caption, shown)
        for background in re.findall(r"(\w+) background", caption):
            assert background == shown.background
        for word, noun in re.findall(r"\b(one|two|three|four) (things?|(?:\w+ )?(?:circles|squares|stars))\b", caption):
            assert len(things_called(shown, noun)) == NUMBERS.index(word), (caption, shown)
    assert found > 2000


def test_the_share_of_image_related_words_is_that_of_human_annotators():
    words = relevant = 0
    classes = Counter()
    lengths = []
    for index in range(6000):
        rng = generator("train", index, 0)
        pieces = classified_caption(draw("train", rng), rng)
        caption, spans = join(pieces)
        classes.update(kind for _, kind in pieces)
        lengths.append(len(caption.split()))
        words += lengths[-1]
        relevant += len(spans)
    assert abs(relevant / words - scenes.HUMAN_SHARE) < 0.015
    assert 24 < np.mean(lengths) < 30
    # Both predictable and unpredictable words are among those that the picture does not decide.
    assert min(classes[kind] for kind in ("function", "stock", "name", "number")) > 0.05 * words


def test_text_documents_are_captions_and_answered_descriptions_without_held_out_combinations():
    held_out = re.compile("|".join(f"{colour} {shape}" for colour, shape in scenes.HELD_OUT))
    documents = [row["text"] for row in scenes.texts(0, 800, 0)]
    assert not any(held_out.search(text) for text in documents)
    quizzes = [text for text in documents if text.count("Please answer yes or no.\nAnswer: ") == 6]
    answered = [text for text in documents if "\nAnswer: " in text and text not in quizzes]
    assert 0.07 < len(answered) / len(documents) < 0.13 and 0.45 < len(quizzes) / len(documents) < 0.55
    for question in "\n".join(quizzes).split("\nAnswer: ")[1:]:
        assert re.match(r"[a-z, ]+: (Yes|No)(\n|$)", question), question
    thing = re.compile(r"an? (\w+) (\w+) (\w+) (\w+) at the (\w+) (\w+)")
    for text in answered:
        description, rest = text.split("\n", 1)
        things = tuple(
            scenes.Thing(shape, colour, size, texture, ROWS.index(row), COLUMNS.index(column))
            for size, texture, colour, shape, row, column in thing.findall(description)
        )
        told = scenes.Scene(things, re.search(r"on a (\w+) background$", description)[1])
        for exchange in re.findall(r"(?:^|\n)((?:Question: |Is |Are |If )(?:.|\n)+?\nAnswer: [^\n]+)", rest):
            words = re.search(r"(?:Question: )?(.+)", exchange)[1]
            given = exchange.rsplit("Answer: ")[-1]
            right = answer_of(told, words)
            if isinstance(right, set):
                assert given in right, text
            else:
                assert given.endswith(": Yes" if right else ": No"), text
                check_evidence(told, words, given)


# Questions.


@pytest.fixture(scope="module")
def asked():
    """Two thousand questions of each kind about training scenes, with these scenes."""
    found = {}
    for kind in questions.KINDS:
        rng = np.random.default_rng([11, len(kind), sum(map(ord, kind))])
        found[kind] = [questions.find(kind, "train", 6000, 0, rng) for _ in range(2000)]
    return found


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", list(questions.KINDS))
def test_answers_are_right_by_another_reading_of_the_question(kind, split):
    rng = np.random.default_rng(5)
    for _ in range(120):
        index, question = questions.find(kind, split, 1500, 0, rng)
        shown = scenes.scene(split, index, 0)
        right = answer_of(shown, question.text)
        if question.options is None:
            assert question.text.endswith("Please answer yes or no.")
            assert question.answer == ("Yes" if right else "No")
            assert question.said.endswith(f": {question.answer}")
            check_evidence(shown, question.text, question.said)
            continue
        assert question.said == question.answer
        assert len(question.options) == 4
        assert [option for option in question.options if option in right] == [question.answer]
        # VLMEvalKit finds the letter of an answer by looking for the options in it.
        assert not any(one in other for one, other in itertools.permutations(question.options, 2))
        assert all(1 <= len(option.split()) <= 3 for option in question.options)


def test_no_word_of_a_yes_no_question_tells_its_answer(asked):
    tests = []
    for kind in questions.YES_NO_KINDS:
        counts: dict[str, Counter] = {}
        for _, question in asked[kind]:
            for word in {*question.text.split(), question.text}:
                counts.setdefault(word, Counter())[question.answer] += 1
        yes = np.mean([question.answer == "Yes" for _, question in asked[kind]])
        assert abs(yes - 0.5) < 0.05, kind
        for word, count in counts.items():
            total = count["Yes"] + count["No"]
            if 40 <= total < 1900:
                tests.append((chi2.sf((count["Yes"] - count["No"]) ** 2 / total, 1), kind, word, dict(count)))
    worst = min(tests)
    assert worst[0] * len(tests) > 0.001, worst


def test_no_option_is_more_often_right_than_another(asked):
    for kind in questions.CHOICE_KINDS:
        right, shown, letters = Counter(), Counter(), Counter()
        for _, question in asked[kind]:
            right[question.answer] += 1
            shown.update(question.options)
            letters[question.options.index(question.answer)] += 1
        statistic = sum((right[option] - shown[option] / 4) ** 2 / (shown[option] * 3 / 16) for option in shown)
        assert chi2.sf(statistic, len(shown)) > 1e-4, kind
        assert chi2.sf(sum((letters[at] - 500) ** 2 / 500 for at in range(4)), 3) > 1e-4, kind


def test_tuning_questions_are_about_training_pictures_and_of_every_kind():
    rows = list(questions.tuning_questions(3000, 0, 40, 0))
    assert {row["id"] for row in rows} <= {f"train-{index:06d}" for index in range(40)}
    held_out = re.compile("|".join(f"{colour} {shape}" for colour, shape in scenes.HELD_OUT))
    assert not any(held_out.search(row["prompt"] + row["answer"]) for row in rows)
    assert all(row["prompt"].endswith("\nAnswer:") and row["answer"].startswith(" ") for row in rows)
    for row in rows:
        if not row["prompt"].startswith("Question: "):
            shown = scenes.scene("train", int(row["id"].removeprefix("train-")), 0)
            check_evidence(shown, row["prompt"].removesuffix("\nAnswer:"), row["answer"][1:])
    shapes = Counter(re.sub(r"\d+", "", row["prompt"].split()[0]) for row in rows)
    assert set(shapes) == {"Question:", "Is", "Are", "If"} and 0.3 < shapes["Question:"] / 3000 < 0.45


def test_prompts_are_those_of_vlmevalkit():
    options = {"A": "red", "B": "pink", "C": "blue", "D": "cyan"}
    assert questions.prompt("What color is the star?", options) == (
        "Question: What color is the star?\nOptions:\nA. red\nB. pink\nC. blue\nD. cyan\n"
        "Please select the correct answer from the options above. \n"
    )
    assert questions.prompt("Is the star red? Please answer yes or no.", None) == (
        "Is the star red? Please answer yes or no."
    )
    assert questions.exchange("above. \n") == "above.\nAnswer:"
