"""Benchmark TSVs: text survives the way to disk and back, and every mistake is one line with its place and remedy."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval import tsv
from eval.vlmevalkit.prompts import export
from prior.errors import UserError
from tests.eval import official_tsvs


def picture(seed: int) -> str:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def mme() -> pd.DataFrame:
    rows = [
        ("existence", "1.png", "Yes"),
        ("existence", "1.png", "No"),
        ("color", "1.png", "Yes"),
        ("color", "1.png", "No"),
    ]
    frame = pd.DataFrame(rows, columns=["category", "image_path", "answer"])
    return frame.assign(index=[str(row) for row in range(4)], question="Is it red?", image=picture(0))


def mmbench() -> pd.DataFrame:
    frame = pd.DataFrame({"index": ["7", "1000007"], "A": ["red", "blue"], "B": ["blue", "red"], "answer": ["A", "B"]})
    return frame.assign(question="Which colour?", category="colour", image=[picture(1), "7"])


def pope() -> pd.DataFrame:
    frame = pd.DataFrame({"index": ["0", "1"], "category": ["random,popular", "random"], "answer": ["Yes", "No"]})
    return frame.assign(question="Is there a cat?", image_path=["1.png", "2.png"], image=[picture(1), picture(2)])


def chair() -> pd.DataFrame:
    return pd.DataFrame({"index": ["0", "1"], "objects": ['["cat"]', "[]"], "image": [picture(1), picture(2)]})


GOOD = {"MME": mme, "MMBench": mmbench, "POPE": pope, "CHAIR": chair}


def write(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, sep="\t", index=False)
    return path


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TRICKY = st.sampled_from(
    ["", "None", "NA", "nan", "null", "007", "1.0", "True", '"', "a\tb", "a\nb", "a\r\nb", "=A", " x "]
)


@given(st.lists(TEXT | TRICKY, min_size=1, max_size=8))
@settings(deadline=None)
def test_every_answer_survives_the_file(answers: list[str]) -> None:
    frame = pd.DataFrame({"index": [str(row) for row in range(len(answers))], "prediction": answers, "image": "x"})
    with tempfile.TemporaryDirectory() as folder:
        tsv.write_predictions(frame, Path(folder) / "model" / "X.tsv")
        back = tsv.read_benchmark(Path(folder) / "model" / "X.tsv")
    assert list(back["prediction"]) == answers
    assert list(back.columns) == ["index", "prediction"]


@pytest.mark.parametrize("name", GOOD)
def test_good_benchmarks_pass_and_shared_pictures_are_resolved(name: str, tmp_path: Path) -> None:
    frame = tsv.validate(write(GOOD[name](), tmp_path / f"{name}.tsv"))
    assert frame["image"].map(len).min() > tsv.LONGEST_REFERENCE
    assert "image" not in tsv.validate(tmp_path / f"{name}.tsv", pictures=False)


@pytest.mark.parametrize(
    ("name", "row", "column", "value", "said"),
    [
        ("MME", 2, "index", "1", "row 3: the index 1 occurs twice"),
        ("MME", 2, "index", "x2", "row 3: the index 'x2' is not a whole number"),
        ("MME", 1, "answer", "no", "index 1: the answer 'no' is none of Yes, No"),
        ("MME", 1, "category", "colour", "index 1: MME has no category 'colour'"),
        ("MME", 3, "image_path", "2.png", "index 2: the picture '1.png' of category 'color' has 1 question;"),
        ("MME", 1, "question", " ", "index 1: an empty 'question'"),
        ("MME", 1, "prediction", "Yes", "has a column 'prediction'"),
        ("MME", 1, "image", picture(3), "index 0: '1.png' names more than one picture"),
        ("MME", 0, "image_path", "/1.png", "index 0: the image_path '/1.png' leads elsewhere"),
        ("POPE", 0, "image_path", "a/../../1.png", "index 0: the image_path 'a/../../1.png' leads elsewhere"),
        ("POPE", 0, "category", "random,", "index 0: the category 'random,': a split has a name"),
        ("POPE", 0, "category", "Overall", "index 0: the category 'Overall': a split has a name"),
        ("CHAIR", 0, "objects", "cat", "index 0: the objects 'cat' are no JSON list of names"),
        ("CHAIR", 0, "objects", '{"cat": 1}', "index 0: the objects '{\"cat\": 1}' are no JSON list of names"),
        ("CHAIR", 1, "image", "TWFu", "index 1: the image 'TWFu' is too short"),
        ("MMBench", 0, "Z", "green", "index 7: an option Z"),
        ("POPE", 0, "category", "", "index 0: an empty 'category'"),
        ("MME", 0, "image", picture(3)[:-40], "index 0: the image does not decode"),
        ("MME", 1, "image", "!" * 100, "index 1: the image does not decode"),
        ("MME", 1, "image", "TWFu" * 40, "index 1: the image does not decode (cannot identify image file)"),
        ("MME", 1, "image", picture(3)[:-1], "index 1: the image does not decode (Incorrect padding)"),
        ("MME", 1, "image", "", "index 1: the image '' is too short"),
        ("MME", 1, "image", "TWFu", "index 1: the image 'TWFu' is too short"),
        ("MME", 1, "index", "1.0", "row 2: the index '1.0' is not a whole number"),
        ("MMBench", 1, "image", "8", "index 1000007: the image '8' is too short"),
        ("MMBench", 0, "answer", "C", "index 7: the answer 'C' is none of A, B"),
        ("MMBench", 1, "answer", "", "index 1000007: the answer '' is none of A, B"),
        ("MMBench", 0, "B", "", "index 7: fewer than two options"),
        ("MMBench", 1, "B", "None", "index 1000007, B: VLMEvalKit reads 'None' as an empty cell"),
        ("MMBench", 1, "index", "1000008", "index 1000008: a rotation of question 8, which is not there"),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_remedy(
    name: str, row: int, column: str, value: str, said: str, tmp_path: Path
) -> None:
    frame = GOOD[name]()
    frame.loc[row, column] = value
    frame = frame.fillna("")
    path = write(frame, tmp_path / f"{name}.tsv")
    with pytest.raises(UserError) as raised:
        tsv.validate(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {said}")
    assert ";" in message.removeprefix(str(path)) and "\n" not in message


def test_a_benchmark_is_checked_before_it_is_asked(tmp_path: Path) -> None:
    def refused(answer: str, said: str) -> None:
        with pytest.raises(UserError, match=said):
            export(path, tmp_path / "prompts.jsonl", tmp_path / "cache", answer)
        assert list(tmp_path.iterdir()) == [path]

    path = write(mmbench().assign(answer="E"), tmp_path / "MMBench.tsv")
    refused("generate", "the answer 'E' is none of A, B")
    write(mme(), path)
    refused("likelihood", "there are none; use `answer: generate`")
    refused("caption", "`answer: caption` is for tables of 'objects' without")


def test_numbers_that_change_when_read_are_refused(tmp_path: Path) -> None:
    frame = mmbench().assign(A=["01", "2"], B=["2", "01"])
    with pytest.raises(UserError, match="index 7, A: VLMEvalKit reads '01' as '1'"):
        tsv.validate(write(frame, tmp_path / "MMBench.tsv"))


@pytest.mark.parametrize("name", official_tsvs.BENCHMARKS)
def test_an_official_benchmark_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    path = official_tsvs.write(name, tmp_path)
    frame = tsv.validate(path, official=True)
    assert len(frame) == official_tsvs.ROWS[name]
    assert frame["image"].map(len).min() > tsv.LONGEST_REFERENCE
    if "A" in frame:
        with pytest.raises(UserError, match="A: VLMEvalKit reads 'None' as an empty cell"):
            tsv.validate(path, pictures=False)
    if name == "MMBench_DEV_EN":
        question = tsv.groups(frame, "circular")
        assert question.nunique() == 1164 and (frame["image"].groupby(question).nunique() == 1).all()
    # Its other mistakes are found all the same.
    frame.loc[1000, "answer"] = "Z"
    with pytest.raises(UserError, match=f"index {frame.loc[1000, 'index']}: the answer 'Z' is none of"):
        tsv.validate(write(frame.drop(columns="image"), path), pictures=False, official=True)


def test_an_option_that_vlmevalkit_does_not_see_is_none() -> None:
    row = {"A": "None", "B": "none", "C": "", "D": "N/A", "E": "0"}
    assert tsv.options(row) == tsv.options(pd.Series(row)) == {"B": "none", "E": "0"}


def test_questions_about_one_picture_are_one_group_and_so_are_rotations() -> None:
    pope = mme().assign(image_path=["1.png", "1.png", "2.png", "2.png"])
    for kind in ("pope", "yes/no", "choice"):
        assert list(tsv.groups(pope, kind)) == ["1.png", "1.png", "2.png", "2.png"]
        assert list(tsv.groups(pope.drop(columns="image_path"), kind)) == ["0", "1", "2", "3"]
    assert list(tsv.groups(mmbench().assign(image_path="1.png"), "circular")) == ["7", "7"]


@pytest.mark.parametrize("column", ["index", "question", "answer", "category", "image_path", "image"])
def test_a_missing_column_is_named(column: str, tmp_path: Path) -> None:
    path = write(mme().drop(columns=column), tmp_path / "MME.tsv")
    with pytest.raises(UserError, match=f"lacks the column '{column}'"):
        tsv.validate(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "not a table"),
        (b"index\n\xff\n", "not a table"),
        (b"index\tA\n1\t2\t3\n", "more cells"),
    ],
)
def test_what_is_no_table_is_said_to_be_none(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "MME.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        tsv.validate(path)
