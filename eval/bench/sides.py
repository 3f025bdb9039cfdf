"""The sides of each comparison: a side is built once, and called once a round.

A call does a round's work and says how long it took (``seconds``), over how many caption tokens (``tokens``), and what
came out (``losses``), by which the sides are seen to do the same work.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

from eval.bench import flops
from eval.bench.cal import CALLoop
from eval.bench.sizes import BATCH, BOS, PAD, Size, build, documents, model_config
from prior import config
from prior.documents import Documents
from prior.models.attention import pack
from prior.models.hlvlm import HLVLM
from prior.packing import Batch, Packer
from prior.scores import token_logprobs
from prior.state import read_lines
from prior.training import CaptionLoop, Rows, arguments
from prior.weighting import REGISTRY

Round = dict[str, Any]
Side = Callable[[], Round]

# The first step of each round, in which buffers are made, is not timed.
STEPS = 3
IGNORED = -100
LEARNING_RATE = 1e-4


def training(size: Size, loop: str) -> Side:
    """Training in our loop (``ntp``, ``prior``, ``cal``) or in transformers' own (``stock``)."""
    lvlm = build(size)
    lines = documents(size, STEPS * BATCH)
    return (lambda: stock_training(lvlm, lines, size)) if loop == "stock" else OurTraining(lvlm, lines, size, loop)


class Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(now())

    @property
    def seconds(self) -> float:
        return self.ends[-1] - self.ends[0]


def now() -> float:
    """Seconds, once the accelerator has done what it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class OurTraining:
    """`prior.training`: each step is one packed row of 32 captions."""

    def __init__(self, lvlm: HLVLM, lines: Documents, size: Size, loop: str) -> None:
        self.lvlm = lvlm
        self.packer = Packer(lines, BOS, lvlm)
        self.settings = config.Training(learning_rate=LEARNING_RATE, warmup_ratio=0, bf16=size.bf16)
        self.loop = loop
        pack(lvlm.model)

    def __call__(self) -> Round:
        plan = [range(start, start + BATCH) for start in range(0, STEPS * BATCH, BATCH)]
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            given: dict[str, Any] = {
                "model": self.lvlm.model,
                "args": arguments(self.settings, Path(folder), 0, STEPS),
                "train_dataset": Rows(plan, self.packer.row),
                "callbacks": [clock],
            }
            if self.loop == "cal":
                loop: CaptionLoop = CALLoop(**given)
            else:
                loop = CaptionLoop(**given, weighting=REGISTRY[self.loop].function)
            loop.train()
            losses = [line["loss"] for line in read_lines(loop.log_file)]
        return {
            "seconds": clock.seconds,
            "tokens": timed_tokens(self.packer.documents),
            "losses": losses,
            "flops": sum(self.flops(row) for row in plan[1:]),
        }

    def flops(self, row: Sequence[int]) -> int:
        """Operations that a step over these captions needs."""
        lengths = self.packer.lengths()[list(row)]
        labels = int(self.packer.documents.targets.lengths[list(row)].sum())
        pairs = flops.causal_pairs(lengths.tolist())
        return flops.training_step(self.lvlm.model.config, int(lengths.sum()), pairs, labels, len(row))


def timed_tokens(lines: Documents) -> int:
    """Caption tokens of all steps but the first."""
    return int(lines.targets.lengths[BATCH:].sum())


def stock_training(lvlm: HLVLM, lines: Documents, size: Size) -> Round:
    """`transformers.Trainer` and `LlavaForConditionalGeneration(labels=...)` over padded batches of 32 captions."""
    examples = [
        {"text": torch.from_numpy(np.array([BOS, *picture.ids, *lines.targets[index]])), "picture": picture}
        for index, picture in enumerate(lines.pictures(lvlm, range(len(lines))))
    ]

    def collate(batch: Sequence[dict[str, Any]]) -> Batch:
        ids = pad_sequence([example["text"] for example in batch], batch_first=True, padding_value=PAD)
        lengths = torch.tensor([len(example["text"]) for example in batch])
        places = torch.arange(ids.shape[1])
        inside = places < lengths[:, None]
        before = 1 + lvlm.model.config.image_seq_length
        return {
            "input_ids": ids,
            "attention_mask": inside.long(),
            "labels": ids.masked_fill(~inside | (places < before), IGNORED),
            "pixel_values": lvlm.collate([example["picture"] for example in batch]),
        }

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        given = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            weight_decay=config.Training().weight_decay,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": config.Training().min_lr_ratio},
            optim="adamw_torch_fused",
            bf16=size.bf16,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=lvlm.model, args=given, train_dataset=examples, data_collator=collate, callbacks=[clock]
        )
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"seconds": clock.seconds, "tokens": timed_tokens(lines), "losses": losses}


def scoring(size: Size, loop: str, captions: int, times: int = 1) -> Side:
    """log p of captions under the text model alone, by `prior.scores` (``ours``) or in padded batches (``stock``)."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config(size).text_config).eval()
    if torch.cuda.is_available():
        model.to("cuda", torch.bfloat16 if size.bf16 else torch.float32)
    lines = documents(size, captions, times).without_pictures()
    count = len(lines)
    if loop == "ours":
        pack(model)

    def ours() -> np.ndarray:
        return token_logprobs(model, Packer(lines, BOS))

    def stock() -> np.ndarray:
        return np.concatenate([batch(range(at, min(at + BATCH, count))) for at in range(0, count, BATCH)])

    @torch.no_grad()
    def batch(indices: Sequence[int]) -> np.ndarray:
        texts = [torch.from_numpy(np.array([BOS, *lines.targets[index]])) for index in indices]
        ids = pad_sequence(texts, batch_first=True, padding_value=PAD).to(model.device)
        inside = torch.arange(ids.shape[1]) < torch.tensor([[len(text)] for text in texts])
        inside = inside.to(model.device)
        logits = model(input_ids=ids, attention_mask=inside.long(), use_cache=False).logits
        labels = ids.masked_fill(~inside, IGNORED)[:, 1:]
        nll = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), reduction="none")
        return -nll[labels.flatten() != IGNORED].cpu().numpy()

    def call() -> Round:
        start = now()
        logprob = ours() if loop == "ours" else stock()
        seconds = now() - start
        return {
            "seconds": seconds,
            "tokens": len(logprob),
            "losses": (-np.add.reduceat(logprob, lines.targets.offsets[:-1]) / lines.targets.lengths).tolist(),
        }

    return call
