"""A checkpoint as VLMEvalKit drives it: one question at a time. Importable only after `eval.vlmevalkit.kit.kit`."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from vlmeval.vlm.base import BaseModel

from eval.predict import load_model, reply
from prior.corpus.questions import exchange
from prior.errors import UserError


class Checkpoint(BaseModel):
    """One of our checkpoints behind VLMEvalKit's interface; it is asked just what `eval.predict` asks it.

    Parameters
    ----------
    folder
        A checkpoint with its tokenizer.
    max_new_tokens
        Longest reply, in tokens.
    threads
        Threads of the process from now on. Sums in another order can tip the balance between two answers.
    """

    def __init__(self, folder: Path, max_new_tokens: int, threads: int) -> None:
        super().__init__()
        torch.set_num_threads(threads)
        self.max_new_tokens = max_new_tokens
        self.model = load_model(folder)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The reply to a message: parts of ``type`` and ``value``, which is a text or the path of a picture."""
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        images = [Image.open(part["value"]).convert("RGB") for part in message if part["type"] == "image"]
        if len(images) > 1:
            raise UserError(f"{dataset}: a question shows {len(images)} pictures, but models read one; leave it out")
        pictures = self.model.architecture.read(images) if images else []
        return reply(self.model, self.model.encode([exchange(text)]), pictures, self.max_new_tokens)[0]
