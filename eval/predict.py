"""Batched prediction: a checkpoint answers the questions of a benchmark, with and without their pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image

from eval.answers import Answers
from eval.tsv import options, read_benchmark
from prior import stopping
from prior.corpus.questions import exchange
from prior.documents import Documents, Pictures, Ragged, encode, image_size
from prior.errors import UserError
from prior.models.attention import pack, unpack
from prior.packing import Packer
from prior.scores import token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prior.config import Evaluation
    from prior.models import Architecture, Picture

Progress = Callable[[int], object]
# Questions whose options are ranked, and their answers written down, at a time.
RANKED_TOGETHER = 256


@dataclass(frozen=True)
class Questions:
    """A benchmark as it is put to models.

    Attributes
    ----------
    frame
        Its rows, as `eval.tsv.read_benchmark` gives them.
    texts
        What a model reads before it answers, one for each row; empty where it captions the picture.
    answer
        ``generate``, ``likelihood`` or ``caption``: the preset's setting for this benchmark.
    """

    frame: pd.DataFrame
    texts: list[str]
    answer: str
    _pictures: Pictures = field(default_factory=Pictures, compare=False, repr=False)

    @classmethod
    def read(cls, benchmark: Path, prompts: Path, answer: str) -> Questions:
        """A benchmark's TSV and its prompts, as `eval.vlmevalkit.prompts` exports them.

        Raises
        ------
        UserError
            If the prompts are those of other rows.
        """
        frame = read_benchmark(benchmark)
        try:
            # By the end of lines alone: `splitlines` would also break where a question holds a separator of its own.
            asked = [json.loads(line) for line in prompts.read_text(encoding="utf-8").split("\n") if line]
        except (OSError, ValueError):
            asked = []
        if [row["index"] for row in asked] != list(frame["index"]):
            raise UserError(f"{prompts}: these are not the questions of {benchmark}; have them exported again")
        texts = [exchange(row["text"]) if answer == "generate" else "" for row in asked]
        return cls(frame, texts, answer)

    def __len__(self) -> int:
        return len(self.frame)

    def open_image(self, row: int) -> Image.Image:
        return open_image(self.frame["image"].iloc[row], self._name(row))

    def image_size(self, row: int) -> tuple[int, int]:
        """(width, height) of the picture of a row."""
        return image_size(base64.b64decode(self.frame["image"].iloc[row]))

    def pictures(self, architecture: Architecture, rows: Sequence[int]) -> list[Picture]:
        """The pictures of some rows as an architecture sees them."""
        return self._pictures.read(architecture, rows, self.open_image)

    def choices(self, rows: Sequence[int]) -> tuple[list[dict[str, str]], list[bytes]]:
        """The options of some rows, by letter, and their encoded pictures."""
        part = self.frame.iloc[list(rows)]
        return [options(row) for row in part.to_dict("records")], [base64.b64decode(image) for image in part["image"]]

    def _name(self, row: int) -> str:
        return str(self.frame["image_path"].iloc[row]) if "image_path" in self.frame else ""


def open_image(encoded: str, name: str = "") -> Image.Image:
    """The RGB picture that VLMEvalKit would show a model.

    It writes the picture into a file called `name`, if the benchmark names its pictures, and has the model open that:
    under a JPEG's name the picture is compressed once more, which changes its pixels.
    """
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if name.lower().endswith((".jpg", ".jpeg")):
        stream = io.BytesIO()
        (image.convert("RGB") if image.mode in ("RGBA", "P", "LA") else image).save(stream, "JPEG")
        image = Image.open(stream)
    return image.convert("RGB")


@dataclass(frozen=True)
class Model:
    """A checkpoint that can be asked; `fingerprint` tells its weights from those of another."""

    architecture: Architecture
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str = ""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts, without those that begin and end them."""
        return encode(self.tokenizer, texts, offsets=False)["input_ids"]


def load_model(folder: Path) -> Model:
    """A checkpoint and its tokenizer, on the GPU in its own precision if there is one, else in float32."""
    from prior import models
    from prior.backbones import load_tokenizer

    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    cuda = torch.cuda.is_available()
    architecture = models.load(folder, getattr(torch, saved) if cuda else torch.float32)
    architecture.model.to("cuda" if cuda else "cpu").eval()
    # Reading many gigabytes of weights once more would take longer than answering a benchmark.
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    return Model(architecture, load_tokenizer(folder), json.dumps(states))


@torch.no_grad()
def reply(
    model: Model,
    prompts: Sequence[Sequence[int]],
    pictures: Sequence[Picture],
    max_new_tokens: int,
) -> list[str]:
    """Greedy replies to one batch, padded on the left, without surrounding white space.

    Parameters
    ----------
    prompts
        What is asked, as `Model.encode` gives it.
    pictures
        One for each prompt, or none at all.
    max_new_tokens
        Longest reply, in tokens.
    """
    architecture, tokenizer = model.architecture, model.tokenizer
    unpack(architecture.model.eval())
    device = next(architecture.model.parameters()).device
    prefixes = [picture.ids for picture in pictures] or [[]] * len(prompts)
    sequences = [[tokenizer.bos_token_id, *prefix, *ids] for prefix, ids in zip(prefixes, prompts, strict=True)]
    longest = max(map(len, sequences))
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for place, sequence in enumerate(sequences):
        ids[place, longest - len(sequence) :] = torch.tensor(sequence)
        mask[place, longest - len(sequence) :] = 1
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if pictures:
        inputs["pixel_values"] = architecture.collate(list(pictures)).to(device)
    output = architecture.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)]


def choose(
    model: Model,
    choices: Sequence[Mapping[str, str]],
    images: Sequence[bytes],
    with_picture: bool,
) -> list[str]:
    """The letter of the option that the picture makes most likely, for models that only know how to caption.

    `choices` holds, for each question, the texts of its options by their letters.
    With its picture an option is ranked by log p(option | picture) − log p(option), so that common sentences have no
    advantage (pointwise mutual information, as in lm-evaluation-harness's ``acc_mutual_info``); without, by
    log p(option).
    """
    architecture, tokenizer = model.architecture, model.tokenizer
    pack(architecture.model.eval())
    owner = [question for question, texts in enumerate(choices) for _ in texts]
    texts = [text for group in choices for text in group.values()]
    tokens = model.encode(texts)
    documents = Documents(
        ids=[str(number) for number in range(len(texts))],
        targets=Ragged.of([[*ids, tokenizer.eos_token_id] for ids in tokens], np.int32),
        image=lambda index: images[owner[index]],
    )

    def total(part: Documents) -> np.ndarray:
        packer = Packer(part, tokenizer.bos_token_id, architecture)
        return np.add.reduceat(token_logprobs(architecture.model, packer), documents.targets.offsets[:-1])

    ranking = total(documents.without_pictures())
    if with_picture:
        ranking = total(documents) - ranking
    first = np.cumsum([0, *(len(group) for group in choices)])
    return [list(group)[int(np.argmax(ranking[first[i] : first[i + 1]]))] for i, group in enumerate(choices)]


def predict(
    model: Model,
    questions: Questions,
    with_picture: bool,
    settings: Evaluation,
    answers: Answers,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """A benchmark's rows without their pictures, plus a ``prediction`` column.

    Rows are asked in batches, the longest first; a batch that is among `answers` already is not asked again.

    Raises
    ------
    Stopped
        If it was asked to stop (see `prior.stopping`); what has been given stays among `answers`.
    """
    if questions.answer == "likelihood":
        order, size = list(range(len(questions))), RANKED_TOGETHER
    else:
        prompts = model.encode(questions.texts)
        order, size = _longest_first(model, questions, prompts, with_picture), settings.batch_size
    longest = settings.max_caption_tokens if questions.answer == "caption" else settings.max_new_tokens
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        if any(row not in answers.given for row in rows):
            if why := stopping.reason():
                raise stopping.Stopped(f"{len(answers.given)} of {len(questions)} answers given ({why})")
            if questions.answer == "likelihood":
                texts = choose(model, *questions.choices(rows), with_picture)
            else:
                pictures = questions.pictures(model.architecture, rows) if with_picture else []
                texts = reply(model, [prompts[row] for row in rows], pictures, longest)
            answers.add(dict(zip(rows, texts, strict=True)))
        if progress:
            progress(len(rows))
    predictions = [answers.given[row] for row in range(len(questions))]
    return questions.frame.drop(columns="image").assign(prediction=predictions)


def _longest_first(model: Model, questions: Questions, prompts: list[list[int]], with_picture: bool) -> list[int]:
    lengths = [len(ids) for ids in prompts]
    if with_picture:
        prefix = model.architecture.prefix_length
        lengths = [length + prefix(questions.image_size(row)) for row, length in enumerate(lengths)]
    return sorted(range(len(questions)), key=lambda row: -lengths[row])
