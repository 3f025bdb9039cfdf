"""CaptionChoice asks answerable questions whose options betray nothing."""

from __future__ import annotations

import base64
import random
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from eval.benchmarks import captionchoice
from prior.errors import UserError


def corpus(pictures: int, captions: int) -> Dataset:
    entries = [
        (f"picture {i}".encode() * 9, f"Caption {i} number {k}.") for i in range(pictures) for k in range(captions)
    ]
    random.Random(0).shuffle(entries)
    return Dataset.from_dict(
        {
            "id": [str(number) for number in range(len(entries))],
            "image": [image for image, _ in entries],
            "caption": [caption for _, caption in entries],
        }
    )


def test_one_option_is_the_pictures_own_and_the_rest_are_from_three_others(tmp_path: Path) -> None:
    data = corpus(40, 5)
    owner = dict(zip(data["caption"], data["image"], strict=True))
    table = captionchoice.corpus_rows(data, 110, seed=1)
    assert list(table.columns) == ["index", "question", "A", "B", "C", "D", "answer", "category", "image_path", "image"]
    assert table["index"].tolist() == list(range(110))
    asked = []
    for row in table.to_dict("records"):
        image = base64.b64decode(row["image"])
        owners = {letter: owner[row[letter]] for letter in "ABCD"}
        assert [letter for letter in "ABCD" if owners[letter] == image] == [row["answer"]]
        assert len(set(owners.values())) == 4
        asked.append(row[row["answer"]])
    assert len(set(asked)) == 110
    # 110 questions about 40 pictures: each two or three times.
    assert set(Counter(owner[caption] for caption in asked).values()) == {2, 3}
    assert sorted(Counter(table["answer"]).values()) == [27, 27, 28, 28]

    pd.testing.assert_frame_equal(table, captionchoice.corpus_rows(data, 110, seed=1))
    assert table["answer"].tolist() != captionchoice.corpus_rows(data, 110, seed=2)["answer"].tolist()
    table.to_csv(tmp_path / "CaptionChoice.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "CaptionChoice.tsv", sep="\t"), table)


def test_no_more_questions_than_captions() -> None:
    assert len(captionchoice.corpus_rows(corpus(4, 2), 100, seed=0)) == 8


def test_no_option_is_part_of_another_nor_a_second_truth() -> None:
    shared, part = "A dog runs over the grass.", "a dog runs"
    captions = [[shared, f"Thing number {i:02d}"] if i < 10 else [part, f"Thing number {i:02d}"] for i in range(20)]
    data = Dataset.from_dict(
        {
            "image": [f"{i}".encode() for i in range(20) for _ in range(2)],
            "caption": [caption for pair in captions for caption in pair],
        }
    )
    for row in captionchoice.corpus_rows(data, 40, seed=0).to_dict("records"):
        options = [row[letter].casefold() for letter in "ABCD"]
        assert not any(a in b for i, a in enumerate(options) for j, b in enumerate(options) if i != j)
        own = captions[int(base64.b64decode(row["image"]))]
        assert [option in own for option in (row[letter] for letter in "ABCD")].count(True) == 1


def test_four_different_captions_are_needed() -> None:
    with pytest.raises(UserError, match="3 held-out pictures"):
        captionchoice.corpus_rows(corpus(3, 5), 5, seed=0)
    data = Dataset.from_dict({"image": [b"1", b"2", b"3", b"4"], "caption": ["a", "b", "c", "C"]})
    with pytest.raises(UserError, match="four different captions"):
        captionchoice.corpus_rows(data, 4, seed=0)
