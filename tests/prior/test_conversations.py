"""Conversations in LLaVA's format: hand-written cases, and the array reader beside Python's own."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prior import cli, models
from prior.corpus import json_array
from prior.corpus.conversations import Conversation, read_conversations
from prior.documents import encode
from prior.errors import UserError


def entry(name: str, *values: str, image: str | None = None) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": name, **({"image": image} if image else {}), "conversations": said}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "coco").mkdir(parents=True)
    (folder / "coco" / "1.jpg").write_bytes(b"Nobody looks into it.")
    return folder


def read(images: Path, content: Any, limit: int | None = None, seed: int = 0, allowed: float = 0) -> list[Conversation]:
    source = images.parent / "mix.json"
    source.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return list(read_conversations(source, images, limit, seed, allowed))


def fails(images: Path, content: Any, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(images, content)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("mix.json", *words):
        assert word in message


def test_markers_go_and_turns_stay(images: Path) -> None:
    content = [
        entry("first", "<image>\nWhat is this?", " A dog.\n", "Where?", "In <image>.", image="coco/1.jpg"),
        entry("last", "Name it.\n<image>", "Rex", image="coco/1.jpg"),
        entry("text", "What does <image> mean in XML?", "An element."),
        entry("null", "Hello", "Hi") | {"image": None, "model": ""},
    ]
    assert read(images, content) == [
        {"id": "first", "image": "coco/1.jpg", "turns": [["What is this?", "A dog."], ["Where?", "In <image>."]]},
        {"id": "last", "image": "coco/1.jpg", "turns": [["Name it.", "Rex"]]},
        {"id": "text", "image": None, "turns": [["What does <image> mean in XML?", "An element."]]},
        {"id": "null", "image": None, "turns": [["Hello", "Hi"]]},
    ]


def test_a_limit_takes_the_beginning_of_one_shuffled_order(images: Path) -> None:
    # Ids need not be unique, as in LLaVA-mix-665K.
    content = [entry(f"{number // 2}", f"Question {number}", "Answer") for number in range(200)]
    everything = read(images, content)
    shuffled = read(images, content, limit=200)
    assert everything != shuffled and sorted(map(str, everything)) == sorted(map(str, shuffled))
    assert [item["turns"][0][0] for item in everything] == [f"Question {number}" for number in range(200)]
    for limit in (1, 50):
        assert read(images, content, limit) == shuffled[:limit]
    assert read(images, content, limit=50, seed=1) != shuffled[:50]
    # Entries that are added at the end come in between; the others keep their order.
    fewer = read(images, content[:150], limit=150)
    assert [item for item in shuffled if item in fewer] == fewer


BAD = {
    "has the picture 'none.jpg', which is missing": entry("x", "Q", "A", image="none.jpg"),
    "has the picture 'coco', which is missing": entry("x", "Q", "A", image="coco"),
    "has turns that do not alternate between human and gpt": entry("x", "Q"),
    "has turns that do not alternate": entry("x"),
    "turns that do not alternate": {"id": "x", "conversations": [{"from": "gpt", "value": "A"}] * 2},
    "has an empty turn": entry("x", "Q", " "),
    "an empty turn": entry("x", "<image>\n", "A", image="coco/1.jpg"),
    "is not in LLaVA's format (KeyError: 'conversations')": {"id": "x"},
    "is not in LLaVA's format (KeyError: 'id')": {"conversations": []},
    "is not in LLaVA's format (TypeError": "x",
    "is not in LLaVA's format (AttributeError": {"id": "x", "conversations": [{"from": "human", "value": None}]},
    "LLaVA's format (TypeError": entry("x", "Q", "A") | {"image": ["a.jpg", "b.jpg"]},
}


@pytest.mark.parametrize("trouble", BAD)
def test_bad_entries_are_left_out_up_to_a_share(trouble: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [entry("a", "Q", "A"), BAD[trouble], entry("b", "Q", "A"), entry("c", "Q", "A")]
    assert [item["id"] for item in read(images, content, allowed=0.25)] == ["a", "b", "c"]
    note = capsys.readouterr().err
    assert note.startswith("note: mix.json: 1 of 4 conversations cannot be used (entry 2 ") and trouble in note
    assert note.count("\n") == 1
    fails(images, content, "1 of 4", "entry 2", trouble, "max_bad_fraction")


def test_mistakes_in_the_file_are_one_line_each(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        list(read_conversations(tmp_path / "none.json", images, None, 0, 0.0))
    fails(images, "[]", "no conversations")
    fails(images, '{"images": []}', "line 1:", "not valid JSON")
    good = json.dumps([entry("a", "Q", "A")] * 3, indent=0)
    ends, bare = (good[:-1], good[:-9], good[:40], ""), good.replace('"gpt"', "gpt", 1)
    for content in (*ends, bare, good + "\n[]", "[\n1,]", "[\n1 2]", "[\n1x]"):
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(content)
        fails(images, content, f"line {expected.value.lineno}:", "not valid JSON")
    (tmp_path / "mix.json").write_bytes(b'[{"id": "caf\xe9"}]')
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_conversations(tmp_path / "mix.json", images, None, 0, 0.0))


# Half of a surrogate pair cannot be written as UTF-8.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(VALUE), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_arrays_are_read_as_python_reads_them(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, escaped: bool, chunk: int
) -> None:
    source = tmp_path_factory.getbasetemp() / "array.json"
    source.write_text(json.dumps(values, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        assert json_array.is_array(source)
        assert list(json_array.read_array(source)) == values


def test_a_longer_array_takes_no_more_memory(images: Path) -> None:
    def peak(count: int) -> int:
        source = images.parent / f"{count}.json"
        source.write_text(json.dumps([entry(f"{number}", "Question " * 50, "Answer") for number in range(count)]))
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_conversations(source, images, None, 0, 0.0)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(10_000) < 1.5 * peak(1_000)


def test_a_model_is_tuned_on_conversations(
    arch: str, lvlm: Any, tokenizer: Any, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From LLaVA's JSON to a checkpoint; a conversation without a picture is left out."""
    monkeypatch.setattr(cli, "begin_long_work", torch.set_num_threads)
    said = [
        ("0", ["<image>\na red", "circle", "on the", "left of"]),
        ("1", ["photo\n<image>", "by"]),
        (None, ["a star", "b"]),
    ]
    (tmp_path / "images").mkdir()
    entries = []
    for number, (image, turns) in enumerate(said):
        speakers = ["human", "gpt"] * len(turns)
        entry: dict[str, Any] = {"id": f"c{number}"}
        entry["conversations"] = [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)]
        if image:
            entry["image"] = f"{image}.png"
            (tmp_path / "images" / f"{image}.png").write_bytes(records[number]["image"])
        entries.append(entry)
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    preset, name = tmp_path / "mine.yaml", f"{arch}/ntp/3k/seed0"
    preset.write_text(
        f"extends: tiny\ntune:\n  questions: 3\n  training: {{learning_rate: 1.0e-2, warmup_ratio: 0.0}}\n"
        f"  conversations: {{file: {tmp_path}/mix.json, images: {tmp_path}/images}}\n"
    )
    lvlm.save(tmp_path / "runs" / name / "pretrain/final")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    asked = tmp_path / "questions.jsonl"
    cli.questions(preset=str(preset), out=asked)
    assert sorted(json.loads(line)["id"] for line in asked.read_text().splitlines()) == ["c0", "c1"]
    cli.tune(
        preset=str(preset), run=[name], questions=asked, tokenizer=tmp_path / "tokenizer", runs=tmp_path / "runs",
        state=tmp_path / "state",
    )  # fmt: skip
    described = yaml.safe_load((tmp_path / "runs" / name / "tuned/run.yaml").read_text())
    answers = sum(len(encode(tokenizer, [f" {text}"])["input_ids"][0]) + 1 for text in ("circle", "left of", "by"))
    assert described["tokens"] == {"questions": 2, "answer_tokens": answers}
    before, after = (models.load(tmp_path / "runs" / name / stage / "final").model for stage in ("pretrain", "tuned"))
    old, new = (model.get_input_embeddings().weight for model in (before, after))
    assert not torch.equal(old, new)
