"""What the token viewer shows: pictures, what is known of their captions' tokens, and what was answered about them.

Two kinds of pictures are chosen, neither by what came out: held-out ones, those first about which most benchmarks ask,
and the first ones of every benchmark that are not held-out pictures of the corpus.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from eval.display import name
from eval.gather import classes
from eval.results import PAPERS, largest, read_items, select
from eval.tsv import ROTATION, kind_of, options, read_benchmark
from prior.config import Preset, ScenesCorpus
from prior.corpus.scenes import pair
from prior.corpus.store import read_corpus
from prior.documents import encode, tokenize_captions
from prior.errors import UserError
from prior.tokens import read_ragged, read_table

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

HELD_OUT, OTHERS = 48, 24
SEED = 0
# Larger pictures go into the page as thumbnails of this many pixels a side.
THUMBNAIL_BYTES, THUMBNAIL_SIDE = 24_000, 256
Asked = dict[str, list[dict[str, Any]]]
# (architecture, objective) -> reply, what it was read as, whether it is right.
Replies = dict[tuple[str, str], tuple[str, str, bool]]


def gather(preset: Preset, results: Path, held_out: int = HELD_OUT, others: int = OTHERS) -> dict[str, Any]:
    """Everything that the page of a preset shows, as JSON values.

    Parameters
    ----------
    results
        The preset's results: held-out corpus and its scores, tokenizer, runs, benchmarks and ``items.parquet``.
    held_out, others
        How many pictures of either kind to show at most.

    Raises
    ------
    UserError
        If a file is missing, or tells of other tokens than the tokenizer makes of the captions.
    """
    from prior.backbones import load_tokenizer

    corpus, tokenizer = read_corpus(results / "corpus/val/0000"), load_tokenizer(results / "tokenizer")
    arms = [(arch, objective) for arch in preset.architectures.names() for objective in PAPERS]
    arms = [arm for arm in arms if preset.trains(arm[1], preset.scales[-1])]
    asked, pictures = questions(preset, results, arms)
    digests = [_digest(image) for image in corpus["image"]]
    rows = choose(digests[: preset.evaluation.loss_captions], asked, held_out)
    facts = token_facts(preset, corpus.select(rows), tokenizer, log_probabilities(preset, results, arms))
    cards = [
        card(record["id"], record["image"], asked.get(digests[row], []), record["caption"], known)
        for row, record, known in zip(rows, corpus.select(rows), facts, strict=True)
    ]
    unseen = {key: found for key, found in asked.items() if key not in set(digests)}
    for key in first_of_each(unseen, others):
        image, place = pictures[key]
        caption = generated(preset, place, image)
        title = place if caption is not None else f"{asked[key][0]['benchmark']} · {place}"
        cards.append(card(title, image, asked[key], caption))
    return {
        "preset": preset.name,
        "archs": [{"key": arch, "name": name(arch)} for arch in dict.fromkeys(arch for arch, _ in arms)],
        "objectives": [{"key": key, "name": name(key)} for key in dict.fromkeys(key for _, key in arms)],
        "run": {"scale": preset.scales[-1], "seed": SEED},
        "held_out": len(corpus),
        "cards": cards,
    }


def card(
    title: str, image: bytes, asked: Sequence[Mapping[str, Any]], caption: str | None, tokens: Any = None
) -> dict[str, Any]:
    """One picture of the page; `tokens` are those of `token_facts`, None for a caption that was not scored."""
    address, side = picture(image)
    return {"id": title, "image": address, "side": side, "caption": caption, "tokens": tokens, "questions": list(asked)}


def choose(digests: Sequence[str], asked: Asked, count: int) -> list[int]:
    """The captions to show, each of another picture: first those about which most benchmarks ask, in corpus order."""
    first = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    benchmarks = {key: len({question["benchmark"] for question in asked.get(key, [])}) for key in first}
    chosen = sorted(first, key=lambda key: (-benchmarks[key], first[key]))[:count]
    return sorted(first[key] for key in chosen)


def first_of_each(asked: Asked, count: int) -> list[str]:
    """Pictures of every benchmark in turn, each benchmark's in its order."""
    queues: dict[str, list[str]] = defaultdict(list)
    for key, found in asked.items():
        queues[found[0]["benchmark"]].append(key)
    turns = [key for turn in zip_longest(*queues.values()) for key in turn if key is not None]
    return turns[:count]


def log_probabilities(preset: Preset, results: Path, arms: Sequence[tuple[str, str]]) -> dict[str, tuple[Path, str]]:
    """Where each column of log-probabilities beside the held-out tokens is found: name -> (file, column)."""
    found = {"p_r": (results / "scores/heldout.arrow", "logprob")}
    for arch, objective in arms:
        run = results / "runs" / arch / objective / preset.scales[-1] / f"seed{SEED}/pretrain/token_logprobs.arrow"
        found[f"{arch} {objective} with"] = (run, "logprob")
        found[f"{arch} {objective} without"] = (run, "logprob_without_picture")
    return found


def token_facts(
    preset: Preset, records: Dataset, tokenizer: PreTrainedTokenizerFast, where: Mapping[str, tuple[Path, str]]
) -> list[dict[str, Any]]:
    """What is known of the tokens of each caption, in lists beside one another, the end of sequence included.

    ``text`` (the caption cut where the tokenizer cuts it; None for the end), ``logprob`` (log p_r), ``truth`` (1, 0, or
    None where unknown), ``kind`` (class of the word, or None) and ``mi`` (architecture -> objective -> log p with the
    picture minus log p without it, in nats).
    """
    documents = tokenize_captions(records, tokenizer, image=False)
    offsets = encode(tokenizer, records["caption"])["offset_mapping"]
    values = {key: _beside(path, column, documents) for key, (path, column) in where.items()}
    facts = []
    assert documents.relevant is not None
    for row, (identity, caption) in enumerate(zip(documents.ids, records["caption"], strict=True)):
        mi: dict[str, dict[str, list[float]]] = defaultdict(dict)
        for arch, objective in [key.split()[:2] for key in values if key.endswith(" with")]:
            gain = values[f"{arch} {objective} with"][row] - values[f"{arch} {objective} without"][row]
            mi[arch][objective] = [round(float(value), 4) for value in gain]
        relevant = documents.relevant[row]
        known, ends = classes.pieces(identity, caption, preset.corpus), np.array([end for _, end in offsets[row]])
        facts.append(
            {
                "text": [*pieces(caption, offsets[row]), None],
                # Every digit of a float32, so that the page computes the weights of training.
                "logprob": [float(str(value)) for value in values["p_r"][row]],
                "truth": [None if np.isnan(value) else int(value) for value in relevant],
                "kind": None if known is None else [*known.of(ends).tolist(), None],
                "mi": mi,
            }
        )
    return facts


def pieces(caption: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """The caption cut at the ends of its tokens; empty for a token that goes on with a character of the one before."""
    ends = [0, *np.maximum.accumulate([end for _, end in offsets]).tolist()] if offsets else [0]
    return [caption[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def generated(preset: Preset, identity: str, image: bytes) -> str | None:
    """The caption that the generated world has for one of its validation pictures; None for any other picture."""
    number = _scene_number(preset, identity)
    if number is None:
        return None
    assert isinstance(preset.corpus, ScenesCorpus)
    made = pair("val", number, preset.corpus.seed, preset.corpus.image_size)
    return made["caption"] if made["image"] == image else None


def questions(
    preset: Preset, results: Path, arms: Sequence[tuple[str, str]]
) -> tuple[Asked, dict[str, tuple[bytes, str]]]:
    """What benchmarks ask about pictures, and what seed 0 of every arm replied at the largest scale.

    Returns
    -------
    The questions by the SHA-256 of their picture, and these pictures, each with its name in the benchmark or, without
    one, its index. Of questions that are asked again with their options rotated the first is taken.
    """
    asked: Asked = defaultdict(list)
    pictures: dict[str, tuple[bytes, str]] = {}
    replies = _replies(results / "items.parquet", arms) if preset.benchmarks else {}
    for benchmark in preset.benchmarks:
        frame = read_benchmark(results / "benchmarks" / f"{benchmark}.tsv")
        kind = kind_of(benchmark, list(frame.columns))
        for row in frame.to_dict("records"):
            if kind == "circular" and int(row["index"]) >= ROTATION:
                continue
            image = base64.b64decode(row["image"])
            key = _digest(image)
            place = Path(row.get("source") or row.get("image_path") or row["index"]).stem
            pictures.setdefault(key, (image, place))
            answered = replies.get((benchmark, row["index"]), {})
            asked[key].append(_question(benchmark, kind, row, answered))
    return asked, pictures


def picture(content: bytes) -> tuple[str, int]:
    """An encoded picture as a data URL, and the length of its longer side in pixels; a large one shrinks."""
    with Image.open(io.BytesIO(content)) as image:
        kind, side = image.get_format_mimetype(), max(image.size)
        if len(content) > THUMBNAIL_BYTES:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=80)
            content, kind, side = buffer.getvalue(), "image/jpeg", max(small.size)
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}", side


def _question(benchmark: str, kind: str, row: Mapping[str, Any], replies: Replies) -> dict[str, Any]:
    if kind == "caption":
        there = json.loads(row["objects"])
        asks = {"text": "Describe the picture.", "options": {}, "answer": ", ".join(there)}
    else:
        there, asks = None, {"text": row["question"], "options": options(row), "answer": row["answer"]}
    told: dict[str, dict[str, Any]] = defaultdict(dict)
    for (arch, objective), reply in replies.items():
        text, parsed, correct = reply
        # Of a caption what it makes up is told; of an answer what it was read as.
        read = ", ".join(sorted(set(parsed.split(", ")) - {"", *there})) if there is not None else parsed
        told[arch][objective] = {"text": text, "read": read, "correct": correct}
    return {"benchmark": benchmark, "kind": kind, "category": row.get("category", ""), **asks, "replies": told}


def _replies(path: Path, arms: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Replies]:
    """What was replied, by benchmark and item."""
    items = select(read_items(path), seed=SEED, picture="with")
    items = items[pd.MultiIndex.from_frame(items[["arch", "objective"]]).isin(arms)]
    found: dict[tuple[str, str], Replies] = defaultdict(dict)
    if items.empty:
        return found
    last = largest(items).astype({"item": str})
    for row in last.itertuples():
        reply = ("" if pd.isna(row.prediction) else str(row.prediction), "" if pd.isna(row.parsed) else str(row.parsed))
        found[row.benchmark, row.item][row.arch, row.objective] = (*reply, bool(row.correct))
    return found


def _beside(path: Path, column: str, documents: Any) -> list[np.ndarray]:
    """A column of log-probabilities for each of some captions, found by their ids."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; run the stage that makes it")
    table = read_table(path)
    place = {identity: row for row, identity in enumerate(table["id"].to_pylist())}
    ids, values = read_ragged(table["input_ids"]), read_ragged(table[column])
    found = []
    for row, identity in enumerate(documents.ids):
        at = place.get(identity)
        if at is None:
            raise UserError(f"{path}: the held-out caption '{identity}' is not in it; make it again")
        if not np.array_equal(ids[at], documents.targets[row]):
            raise UserError(f"{path}: its tokens of '{identity}' are not the tokenizer's; make it again")
        found.append(values[at])
    return found


def _scene_number(preset: Preset, identity: str) -> int | None:
    match = re.fullmatch(r"val-(\d+)", identity)
    return int(match[1]) if match and isinstance(preset.corpus, ScenesCorpus) else None


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()
