"""What the token viewer is made from: tokens, questions and replies of the right pictures, and a page with them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from eval.benchmarks import write_tsv
from eval.benchmarks.captionchoice import corpus_rows
from eval.results import ITEM_COLUMNS
from eval.viewer.gather import THUMBNAIL_SIDE, choose, first_of_each, gather, picture, pieces
from eval.viewer.page import render
from prior.config import Preset
from prior.corpus.scenes import pair, pairs
from prior.corpus.store import read_corpus, write_corpus
from prior.documents import Documents, tokenize_captions
from prior.errors import UserError
from prior.presets import load_preset
from prior.scores import write_scores
from prior.tokens import ragged_array
from tests.conftest import picture as noise

ARMS = [(arch, objective) for arch in ("hlvlm", "ulvlm") for objective in ("ntp", "prior")]
CAPTIONS, SCORED, ELSEWHERE = 12, 9, 1234


@pytest.fixture(scope="module")
def preset() -> Preset:
    whole = load_preset("tiny")
    benchmarks = {name: whole.benchmarks[name] for name in ("MMBench", "CHAIR", "CaptionChoice")}
    evaluation = whole.evaluation.model_copy(update={"loss_captions": SCORED})
    return whole.model_copy(update={"benchmarks": benchmarks, "evaluation": evaluation})


@pytest.fixture(scope="module")
def speller() -> Any:
    from prior.backbones import train_tokenizer
    from prior.config import ScratchTokenizer

    texts = [record["caption"] for record in pairs("train", 0, 200, 0, 16)]
    return train_tokenizer(texts, ScratchTokenizer(vocab_size=400))


@pytest.fixture(scope="module")
def results(preset: Preset, speller: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a preset's results that the page is made from, with imagined numbers."""
    folder, rng = tmp_path_factory.mktemp("results"), np.random.default_rng(0)
    seed, size = preset.corpus.seed, preset.corpus.image_size
    write_corpus(pairs("val", 0, CAPTIONS, seed, size), folder / "corpus/val/0000")
    corpus = read_corpus(folder / "corpus/val/0000")
    speller.save_pretrained(folder / "tokenizer")
    documents = tokenize_captions(corpus, speller, image=False)
    write_scores(folder / "scores/heldout.arrow", documents, draw(documents, rng), {})
    first = tokenize_captions(corpus, speller, image=False, limit=SCORED)
    for arch, objective in ARMS:
        run = folder / f"runs/{arch}/{objective}/12k/seed0/pretrain/token_logprobs.arrow"
        run.parent.mkdir(parents=True)
        columns = {
            name: ragged_array(first.targets.beside(draw(first, rng)), pa.float32())
            for name in ("logprob", "logprob_without_picture")
        }
        table = pa.table({"id": pa.array(first.ids), "input_ids": ragged_array(first.targets, pa.int32()), **columns})
        with pa.ipc.new_file(str(run), table.schema) as stream:
            stream.write_table(table)
    write_tsv(corpus_rows(corpus, 6, 0), folder / "benchmarks/CaptionChoice.tsv")
    images = [base64.b64encode(pair("val", at, seed, size)["image"]).decode() for at in (2, ELSEWHERE)]
    asks = {"question": "What is it?", "A": "this", "B": "that", "category": "image_scene"}
    rows = [
        {"index": index, **asks, "answer": "A", "source": f"val-{at:06d}", "image": image}
        for index, at, image in [(0, 2, images[0]), (1, ELSEWHERE, images[1]), (1_000_000, 2, images[0])]
    ]
    write_tsv(rows, folder / "benchmarks/MMBench.tsv")
    stray = base64.b64encode(noise(rng)).decode()
    write_tsv([{"index": 0, "image": stray, "objects": '["red star"]'}], folder / "benchmarks/CHAIR.tsv")
    items = []
    for arch, objective in ARMS:
        for scale, step, right in ((3000, 20, False), (12_000, 80, True)):
            key = {"arch": arch, "objective": objective, "scale_tokens": scale, "seed": 0, "step": step}
            key |= {"picture": "with", "group": "", "category": ""}
            told = {
                "prediction": f"{arch} {objective} {scale}",
                "parsed": "A",
                "correct": right and objective == "prior",
            }
            items += [
                key | told | {"stage": "tuned", "benchmark": "MMBench", "item": str(index), "answer": "A"}
                for index in (0, 1, 1_000_000)
            ]
            free = {"stage": "pretrain", "benchmark": "CHAIR", "item": "0", "answer": '["red star"]', "correct": False}
            items.append(key | told | free | {"parsed": "blue square, red star"})
    pd.DataFrame(items)[ITEM_COLUMNS].to_parquet(folder / "items.parquet")
    return folder


def draw(documents: Documents, rng: np.random.Generator) -> np.ndarray:
    return -rng.exponential(1.0, len(documents.targets.values)).astype(np.float32)


@pytest.fixture(scope="module")
def data(preset: Preset, results: Path) -> dict[str, Any]:
    return gather(preset, results, held_out=7)


def test_tokens_carry_the_numbers_that_were_stored(data: dict[str, Any], results: Path, speller: Any) -> None:
    corpus = read_corpus(results / "corpus/val/0000")
    documents = tokenize_captions(corpus, speller, image=False)
    with pa.memory_map(str(results / "scores/heldout.arrow")) as source:
        stored = pa.ipc.open_file(source).read_all()["logprob"].to_pylist()
    cards = [card for card in data["cards"] if card["tokens"]]
    assert len(cards) == 7
    for card in cards:
        row, tokens = corpus["id"].index(card["id"]), card["tokens"]
        assert card["caption"] == corpus[row]["caption"]
        assert base64.b64decode(card["image"].partition(",")[2]) == corpus[row]["image"]
        assert "".join(tokens["text"][:-1]) == card["caption"] and tokens["text"][-1] is None
        assert np.array_equal(np.float32(tokens["logprob"]), np.float32(stored[row]))
        assert tokens["truth"] == documents.relevant[row].tolist()
        # The generated world's classes of words are another account of the same thing.
        assert [kind == "visual" for kind in tokens["kind"]] == [bool(value) for value in tokens["truth"]]
        assert {kind for kind in tokens["kind"] if kind} <= {"visual", "function", "stock", "name", "number"}
        for arch, objective in ARMS:
            with pa.memory_map(
                str(results / f"runs/{arch}/{objective}/12k/seed0/pretrain/token_logprobs.arrow")
            ) as file:
                run = pa.ipc.open_file(file).read_all()
            gain = np.subtract(run["logprob"][row].as_py(), run["logprob_without_picture"][row].as_py())
            assert tokens["mi"][arch][objective] == pytest.approx(gain, abs=1e-4)


def test_questions_and_replies_belong_to_their_pictures(data: dict[str, Any], preset: Preset) -> None:
    cards = {card["id"]: card for card in data["cards"]}
    # Of two benchmarks' questions about the picture one may be CaptionChoice's; the rotation is not asked again.
    (question,) = [asked for asked in cards["val-000002"]["questions"] if asked["benchmark"] == "MMBench"]
    assert question["options"] == {"A": "this", "B": "that"} and question["answer"] == "A"
    for arch, objective in ARMS:
        told = {"text": f"{arch} {objective} 12000", "read": "A", "correct": objective == "prior"}
        assert question["replies"][arch][objective] == told
    for card in data["cards"]:
        for asked in card["questions"]:
            if asked["benchmark"] == "CaptionChoice":
                assert asked["options"][asked["answer"]] == card["caption"]
    # A picture that the corpus does not hold has the generated world's caption, and no tokens.
    other = cards[f"val-{ELSEWHERE:06d}"]
    made = pair("val", ELSEWHERE, preset.corpus.seed, preset.corpus.image_size)
    assert other["caption"] == made["caption"] and other["tokens"] is None
    stray = cards["CHAIR · 0"]
    assert stray["caption"] is None and stray["questions"][0]["answer"] == "red star"
    assert stray["questions"][0]["replies"]["hlvlm"]["ntp"]["read"] == "blue square"


def test_pictures_are_chosen_by_how_much_is_asked_about_them() -> None:
    asked = {"b": [{"benchmark": "X"}, {"benchmark": "X"}], "d": [{"benchmark": "X"}, {"benchmark": "Y"}]}
    assert choose(["a", "b", "a", "c", "d"], asked, 3) == [0, 1, 4]
    assert choose(["a", "a"], {}, 5) == [0]
    queues = {"p": [{"benchmark": "X"}], "q": [{"benchmark": "X"}], "r": [{"benchmark": "Y"}]}
    assert first_of_each(queues, 9) == ["p", "r", "q"] and first_of_each(queues, 2) == ["p", "r"]


def test_a_character_of_several_tokens_is_shown_once() -> None:
    assert pieces("é a", [(0, 1), (0, 1), (1, 3)]) == ["é", "", " a"]
    assert pieces("", []) == []


def test_large_pictures_become_thumbnails() -> None:
    address, side = picture(noise(np.random.default_rng(0), 400, 300))
    assert side == THUMBNAIL_SIDE and address.startswith("data:image/jpeg;base64,")


def test_numbers_of_other_tokens_are_refused(preset: Preset, results: Path, speller: Any, tmp_path: Path) -> None:
    corpus = read_corpus(results / "corpus/val/0000")
    other = corpus.select(range(CAPTIONS)).map(lambda row: {"caption": row["caption"] + " x"})
    documents = tokenize_captions(other, speller, image=False)
    for name in ("corpus", "tokenizer", "runs", "benchmarks", "items.parquet"):
        (tmp_path / name).symlink_to(results / name)
    with pytest.raises(UserError, match="heldout.arrow: there is no such file"):
        gather(preset, tmp_path)
    write_scores(tmp_path / "scores/heldout.arrow", documents, draw(documents, np.random.default_rng(0)), {})
    with pytest.raises(UserError, match="not the tokenizer's"):
        gather(preset, tmp_path)


def test_the_page_holds_its_data_and_nothing_from_elsewhere(data: dict[str, Any]) -> None:
    hostile = {**data, "cards": [{**data["cards"][0], "caption": "</script><script>alert(1)</script> \u2028 &amp;"}]}
    html = render(hostile)
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert json.loads(held) == json.loads(json.dumps(hostile))
    assert html.count("</script>") == 2 and "alert(1)</script>" not in html
    assert not re.search(r"https?:|@import|url\(", html)
    assert "default-src 'none'" in html
