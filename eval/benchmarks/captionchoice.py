"""CaptionChoice: which of four captions belongs to this picture? Made from any captioned corpus."""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
from collections import defaultdict
from typing import TYPE_CHECKING

import pandas as pd

from prior.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

QUESTION = "Which caption belongs to this picture?"
LETTERS = "ABCD"


def corpus_rows(corpus: Dataset, items: int, seed: int) -> pd.DataFrame:
    """Make questions from a held-out split, in VLMEvalKit's multiple-choice format.

    Every picture is asked about once before any is asked about again, each time with another of its captions. The
    wrong options are captions of three other pictures, drawn like the right one, so that the options alone say nothing.
    The right letter is uniform: each stands there equally often, give or take one.

    Parameters
    ----------
    corpus
        A stored split with the columns image and caption.
    items
        How many questions to make; fewer come back when the split has fewer captions.
    seed
        Decides captions, options and letters.

    Returns
    -------
    Table of at most `items` rows: index (int), question, A, B, C, D, answer (letter), category, image_path (the
    same for questions about one picture), image (base64).

    Raises
    ------
    UserError
        If the split holds too few different pictures or captions for four options.
    """
    draw = random.Random(f"CaptionChoice {seed}")
    captions = list(corpus["caption"])
    pictures = _pictures(corpus)
    for own in pictures:
        draw.shuffle(own)
    draw.shuffle(pictures)
    asked = [(own, row) for turn in itertools.zip_longest(*pictures) for own, row in zip(pictures, turn, strict=True)]
    asked = [(own, row) for own, row in asked if row is not None][:items]
    letters = [LETTERS[number % len(LETTERS)] for number in range(len(asked))]
    draw.shuffle(letters)

    table = []
    for number, ((own, right), letter) in enumerate(zip(asked, letters, strict=True)):
        wrong = iter(_distractors(pictures, own, right, captions, draw))
        options = {place: captions[right] if place == letter else next(wrong) for place in LETTERS}
        image = base64.b64encode(corpus[right]["image"]).decode("ascii")
        row = {"index": number, "question": QUESTION, **options, "answer": letter, "category": "caption"}
        table.append({**row, "image_path": f"{min(own)}.png", "image": image})
    return pd.DataFrame(table)


def _pictures(corpus: Dataset) -> list[list[int]]:
    """The rows of each different picture."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, image in enumerate(corpus["image"]):
        groups[hashlib.sha256(image).digest()].append(row)
    return list(groups.values())


def _distractors(
    pictures: list[list[int]], own: list[int], right: int, captions: list[str], draw: random.Random
) -> list[str]:
    """Captions of three other pictures, none of which is also a caption of this one.

    No option may be part of another: VLMEvalKit finds the letter of an answer by looking for the options in it.
    """
    true = {captions[row].casefold() for row in own}
    chosen: list[str] = []
    for other in draw.sample(pictures, len(pictures)):
        caption = captions[draw.choice(other)]
        text = caption.casefold()
        taken = [captions[right].casefold(), *(option.casefold() for option in chosen)]
        if other is own or text in true or any(text in option or option in text for option in taken):
            continue
        chosen.append(caption)
        if len(chosen) == len(LETTERS) - 1:
            return chosen
    raise UserError(
        f"CaptionChoice: {len(pictures)} held-out pictures do not give four different captions; "
        "raise corpus.val_fraction or add pictures"
    )
