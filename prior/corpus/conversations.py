"""Conversations about pictures in LLaVA's JSON format (LLaVA-mix-665K), for instruction tuning."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from prior.corpus.json_array import read_array
from prior.corpus.readers import leave_out
from prior.errors import UserError
from prior.hashing import uniform

# Where LLaVA puts the picture among the words, with a line break: here its place is settled by the model.
MARKER = "<image>"


class Conversation(TypedDict):
    """Turns of [prompt, answer]; `image` is the picture's path in the folder of pictures, None where there is none."""

    id: str
    image: str | None
    turns: list[list[str]]


def read_conversations(
    source: Path, images: Path, limit: int | None, seed: int, max_bad_fraction: float
) -> Iterator[Conversation]:
    """Read ``[{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, …]}, …]``.

    The file is streamed. An entry is left out if it is not of this form, if its turns do not alternate between
    ``human``, who begins, and ``gpt``, if a turn is empty, or if its picture is not in the folder. Pictures are not
    opened. Ids are the file's; nothing keeps two entries from having the same.

    Parameters
    ----------
    source
        The JSON file.
    images
        The folder that its paths of pictures begin from.
    limit
        How many entries to take, in an order that the SHA-256 of the seed, an entry's position and its id decides: a
        smaller number gives the beginning of a larger one's. None takes all of them, in the file's order. Entries
        that are left out are not replaced.
    seed
        Which order it is.
    max_bad_fraction
        The share of the taken entries up to which bad ones are left out, with one note. It is known when all have been
        read: a reader must keep nothing until the iteration ends.

    Raises
    ------
    UserError
        If the file is missing or no JSON array, or too many entries are bad.
    """
    if not source.is_file():
        raise UserError(f"there is no file '{source}'; fetch it, or name the right one")
    entries: Any = enumerate(read_array(source))
    if limit is not None:
        entries = heapq.nsmallest(limit, entries, key=lambda item: _rank(seed, *item))
    total = 0
    bad: list[str] = []
    for position, entry in entries:
        total += 1
        conversation = _conversation(entry, images)
        if isinstance(conversation, str):
            bad.append(f"entry {position + 1} {conversation}")
        else:
            yield conversation
    if not total:
        raise UserError(f"{source.name}: there are no conversations in it; add some")
    leave_out(source.name, "conversations", bad, total, max_bad_fraction, f"mend them or put pictures into '{images}'")


def _rank(seed: int, position: int, entry: Any) -> float:
    name = entry.get("id") if isinstance(entry, dict) else None
    return uniform(f"{seed}/{position}/{name!a}")


def _conversation(entry: Any, images: Path) -> Conversation | str:
    """An entry's conversation, or what is wrong with it."""
    try:
        identity, image = str(entry["id"]), entry.get("image")
        speakers = [turn["from"] for turn in entry["conversations"]]
        words = [turn["value"].strip() for turn in entry["conversations"]]
        missing = image is not None and not (images / image).is_file()
    except (AttributeError, KeyError, TypeError) as error:
        return f"is not in LLaVA's format ({type(error).__name__}: {error})"
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        return "has turns that do not alternate between human and gpt"
    if missing:
        return f"has the picture {image!r}, which is missing"
    prompts = words[::2] if image is None else [prompt.replace(MARKER, "").strip() for prompt in words[::2]]
    turns = [list(turn) for turn in zip(prompts, words[1::2], strict=True)]
    if not all(map(all, turns)):
        return "has an empty turn"
    return Conversation(id=identity, image=image, turns=turns)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header.

    Raises
    ------
    UserError
        If it is no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError:
        raise UserError(f"{path}: is no picture that can be read; mend or remove it") from None
