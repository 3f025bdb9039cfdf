"""The one training loop: a thin subclass of `transformers.Trainer` over packed rows, for every stage."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from prior import config, processes, stopping
from prior.errors import UserError
from prior.files import is_full
from prior.loss import token_nll, weighted_ntp_loss
from prior.models.attention import pack
from prior.packing import Batch, Packer, blind_inputs, model_inputs, plan_rows, unlabelled
from prior.state import append_lines, last_whole, mark_whole, read_lines, rewind
from prior.weighting import REGISTRY, Context, Weighting, ntp

LOG = "log.jsonl"


class Rows(Dataset[Batch]):
    """Batches in the order in which they are trained on, dealt out to the processes one by one.

    So that each has as many, the last round is filled up with rows that carry no label and weigh nothing.
    """

    def __init__(self, plan: Sequence[Sequence[int]], make: Callable[[Sequence[int]], Batch]) -> None:
        self.plan = plan
        self.make = make

    def __len__(self) -> int:
        return -(-len(self.plan) // processes.count()) * processes.count()

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self.plan):
            return unlabelled(self.make(self.plan[0]))
        return self.make(self.plan[index])


class Loop(Trainer):
    """Trainer over ready-made batches in a given order, with ``log.jsonl`` in its folder: one JSON line per step.

    Subclasses say what the loss of a batch is. ``self.tokens_seen`` and ``self.watched`` feed the log.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(data_collator=_only, **kwargs)
        # Label tokens are counted over the whole optimizer step; see `CaptionLoop.compute_loss`. They lie in ``labels``
        # already aligned with the logits: without the second line Trainer would leave the first one out of the count.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.loss_is_scaled_for_ga = True
        self.log_file = Path(str(self.args.output_dir)) / LOG
        # Of this process; what was seen before an interruption was seen by all.
        self.tokens_seen = self.tokens_before = 0
        self.watched: dict[str, list[float]] = {}
        self.started = time.monotonic()

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)

    # Private checkpoints hold the model under its own parameter names. `save_pretrained` writes an H-LVLM under the
    # names of LLaVA's first release, which Trainer loads back without noticing that none of them fits.
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.accelerator.unwrap_model(self.model), str(folder / "model.safetensors"))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        # A full disk is an OSError to Python, a RuntimeError to torch and an error of its own kind to safetensors.
        except (OSError, RuntimeError, SafetensorError) as error:
            full = is_full(folder.parent)
            shutil.rmtree(folder, ignore_errors=True)
            if not full:
                raise
            raise UserError(
                f"{folder} cannot be written, for there is no room left on its disk; make room and start again: "
                "what was saved before is whole, and training goes on from there"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_whole(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_model(model or self.model, str(Path(resume_from_checkpoint) / "model.safetensors"), strict=True)

    def watch(self, name: str, values: torch.Tensor) -> None:
        """Add token losses to a mean that the next log line reports."""
        total = self.watched.setdefault(name, [0.0, 0.0])
        total[0] += float(values.sum())
        total[1] += values.numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return
        watched, tokens = self._of_all_processes()
        means = {name: total / count if count else None for name, (total, count) in watched.items()}
        self.watched.clear()
        if not processes.first():
            return
        line = {
            "step": self.state.global_step,
            **means,
            "objective": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "lr": logs["learning_rate"],
            "tokens": tokens,
            "seconds": round(time.monotonic() - self.started, 3),
        }
        append_lines(self.log_file, [line])

    def _of_all_processes(self) -> tuple[dict[str, list[float]], int]:
        """What is watched and the tokens seen, summed over the processes."""
        if processes.count() == 1:
            return dict(self.watched), self.tokens_seen
        parts = gather_object([(self.watched, self.tokens_seen - self.tokens_before)])
        watched: dict[str, list[float]] = {}
        for part, _ in parts:
            for name, (total, count) in part.items():
                kept = watched.setdefault(name, [0.0, 0.0])
                kept[0] += total
                kept[1] += count
        return watched, self.tokens_before + sum(tokens for _, tokens in parts)


class CaptionLoop(Loop):
    """Weighted next-token prediction over packed rows."""

    def __init__(self, *, weighting: Weighting = ntp, parameters: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weighting = weighting
        self.parameters = parameters or {}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Loss of one row, normalised by the label tokens of the whole step over all processes."""
        outputs = model(**model_inputs(inputs), use_cache=False)
        nll = token_nll(outputs.logits, inputs["labels"])
        relevant = inputs.get("relevant")
        if relevant is None:
            relevant = torch.full_like(nll, torch.nan)
        with torch.no_grad():
            context = Context(
                token_nll=nll.detach(),
                caption_index=inputs["caption_index"],
                token_ids=inputs["labels"],
                ref_logprob=inputs.get("ref_logprob"),
                relevant=relevant,
                blind_nll=lambda: token_nll(model(**blind_inputs(inputs), use_cache=False).logits, inputs["labels"]),
            )
            weights = self.weighting(context, **self.parameters)
        self.tokens_seen += nll.numel()
        self.watch("loss", nll.detach())
        if not bool(relevant.isnan().all()):
            self.watch("loss_relevant", nll.detach()[relevant == 1])
            self.watch("loss_other", nll.detach()[relevant == 0])
        loss = weighted_ntp_loss(nll, weights, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # Data parallelism averages gradients over processes, but the divisor already counts the tokens of all.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class StopWhenAsked(TrainerCallback):
    """Saves and stops after the step in which a process was asked to; with `keep`, saves after the last one, too."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.keep and state.global_step == state.max_steps:
            control.should_save = True
        asked = processes.any_of(stopping.reason() is not None, args.device)
        if asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class AtSteps(TrainerCallback):
    """Calls a function with the step number after given steps, the model being in evaluation mode."""

    def __init__(self, steps: set[int], action: Callable[[int], None]) -> None:
        self.steps = steps
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self.steps and processes.first():
            model.eval()
            self.action(state.global_step)
            model.train()


def arguments(settings: config.Training, state_dir: Path, seed: int, steps: int) -> TrainingArguments:
    """Trainer's arguments for one run of so many steps; `state_dir` holds private checkpoints for resuming.

    Raises
    ------
    UserError
        If the rows of a step cannot be dealt out evenly to the processes.
    """
    if settings.rows_per_step % processes.count():
        raise UserError(
            f"rows_per_step {settings.rows_per_step} cannot be dealt out to {processes.count()} processes; "
            "make it a multiple of their number"
        )
    trainer = TrainingArguments(
        output_dir=str(state_dir),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.rows_per_step // processes.count(),
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_lr_ratio},
        # Trainer would read a ratio of 1 as one step.
        warmup_steps=math.ceil(steps * settings.warmup_ratio),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.bf16,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        save_total_limit=2,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        seed=seed,
        ddp_timeout=int(processes.PATIENCE.total_seconds()),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # Where Trainer does not notice the others, each process would train on everything by itself.
    assert trainer.world_size == processes.count(), "Trainer sees another number of processes"
    return trainer


def train(
    model: PreTrainedModel,
    packer: Packer,
    order: np.ndarray,
    settings: config.Training,
    *,
    seed: int,
    state_dir: Path,
    objective: config.Objective | None = None,
    at_steps: Callable[[int], tuple[set[int], Callable[[int], None]]] | None = None,
    keep: bool = False,
) -> int:
    """Train a causal LM or LVLM on documents in the given order, once through.

    Parameters
    ----------
    model
        Trained in place; parameters without gradient stay as they are.
    packer, order
        The documents, and which of them come when.
    objective
        Entry of the registry; next-token prediction by default.
    state_dir
        Private folder: ``log.jsonl``, and checkpoints from which an interrupted run goes on, where
        ``settings.save_steps`` asks for them. Its files of JSON lines (``*.jsonl``) are cut to the step resumed from.
    at_steps
        Given the number of steps, says after which of them to call what.
    keep
        Save after the last step, too, so that a later start has nothing left to train.

    Returns
    -------
    The number of optimizer steps taken.

    Raises
    ------
    Stopped
        If it was asked to stop (see `prior.stopping`); it has been saved and goes on from there when called again.
    """
    pack(model)
    rows = Rows(plan_rows(packer.lengths(order.tolist()), order, settings.row_tokens), packer.row)
    steps = -(-len(rows.plan) // settings.rows_per_step)
    callbacks = [AtSteps(*at_steps(steps))] if at_steps else []
    kind = objective.kind if objective else "ntp"
    loop = CaptionLoop(
        model=model,
        args=arguments(settings, state_dir, seed, steps),
        train_dataset=rows,
        weighting=REGISTRY[kind].function,
        parameters=objective.parameters() if objective else {},
        callbacks=callbacks,
    )
    resume(loop, keep)
    return steps


def resume(loop: Loop, keep: bool = False) -> None:
    """Run the loop to its end, from the last whole private checkpoint if there is one; `keep` as in `train`.

    Raises
    ------
    Stopped
        If it was asked to stop, and has been saved.
    """
    folder = loop.log_file.parent
    if processes.first():
        rewind(folder)
    processes.wait()
    checkpoint = last_whole(folder)
    logged = read_lines(loop.log_file)
    loop.tokens_seen = loop.tokens_before = logged[-1]["tokens"] if logged else 0
    loop.add_callback(StopWhenAsked(keep))
    if checkpoint and processes.first():
        print(f"going on from {checkpoint}", file=sys.stderr, flush=True)
    try:
        loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        # What is said next begins on a line of its own.
        for callback in loop.callback_handler.callbacks:
            if bar := getattr(callback, "training_bar", None):
                bar.close()
    step, steps = loop.state.global_step, loop.state.max_steps
    if step < steps:
        why = stopping.reason() or "another process was asked to stop"
        raise stopping.Stopped(f"{folder}: saved after step {step} of {steps} ({why})")


def _only(batch: list[Batch]) -> Batch:
    """A row is a batch already."""
    return batch[0]
