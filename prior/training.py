"""The one training loop: a thin subclass of `transformers.Trainer` over packed rows, for every stage."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as sharded
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import Dataset, Sampler, SequentialSampler, get_worker_info
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from prior import config, processes, stopping
from prior.config.jobs import ParallelJob
from prior.errors import UserError
from prior.files import is_full
from prior.loss import caption_nll, weighted_ntp_loss
from prior.models.attention import pack
from prior.packing import Batch, Packer, blind_inputs, model_inputs, plan_rows, unlabelled
from prior.state import append_lines, last_whole, mark_whole, read_lines, rewind
from prior.weighting import REGISTRY, Context, Weighting, ntp

LOG = "log.jsonl"
# Parts of a private checkpoint.
MODEL, OPTIMIZER, SCHEDULER = "model", "optimizer", "scheduler.pt"


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
        if get_worker_info() is not None:
            # SLURM tells all processes of a job to end, of which the one that trains has to save first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if index >= len(self.plan):
            return unlabelled(self.make(self.plan[0]))
        return self.make(self.plan[index])


class Loop(Trainer):
    """Trainer over ready-made batches in a given order, with ``log.jsonl`` in its folder: one JSON line per step.

    Subclasses say what the loss of a batch is. ``self.tokens_seen`` and ``self.watched`` feed the log. The learning
    rate runs its course over `horizon` steps, by default those of the training.
    """

    def __init__(self, *, horizon: int | None = None, **kwargs: Any) -> None:
        super().__init__(data_collator=_only, **kwargs)
        self.horizon = horizon
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

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        return super().create_scheduler(self.horizon or num_training_steps, optimizer)

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp and self.args.device.type == "cpu":
            # Accelerate hands FSDP to accelerators alone, though it works on CPUs just as well.
            PartialState().distributed_type = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()
        # Accelerate notes FSDP in the environment, where it would hold for all that is loaded or trained after this.
        os.environ.pop("ACCELERATE_USE_FSDP", None)

    # Private checkpoints hold weights and the optimizer's state under the names of the parameters, each process writing
    # its share: one process can go on from what several wrote, and several from what one wrote, sharded or not.
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._write(MODEL, get_model_state_dict(self.model), output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._write(OPTIMIZER, get_optimizer_state_dict(self.model, self.optimizer.optimizer), output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        set_model_state_dict(self.model, self._read(MODEL, get_model_state_dict(self.model), resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        optimizer = self.optimizer.optimizer
        state = self._read(OPTIMIZER, get_optimizer_state_dict(self.model, optimizer), checkpoint)
        set_optimizer_state_dict(self.model, optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _write(self, part: str, state: dict[str, Any], folder: str | None) -> None:
        assert folder is not None
        with _without_warning():
            sharded.save(state, checkpoint_id=Path(folder) / part, no_dist=processes.count() == 1)

    def _read(self, part: str, state: dict[str, Any], folder: str) -> dict[str, Any]:
        with _without_warning():
            # Weights that never had a gradient have nothing to do with the optimizer yet.
            planner = DefaultLoadPlanner(allow_partial_load=part == OPTIMIZER)
            sharded.load(state, checkpoint_id=Path(folder) / part, planner=planner, no_dist=processes.count() == 1)
        return state

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        # A full disk is an OSError to Python, a RuntimeError to torch and an error of its own kind to sharded writing.
        except (OSError, RuntimeError, CheckpointException) as error:
            full = is_full(folder.parent)
            if isinstance(error, CheckpointException):
                # All processes fail together, and all look before one of them makes room.
                processes.wait()
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
        nll = caption_nll(model, model_inputs(inputs), inputs["labels"])
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
                blind_nll=lambda: caption_nll(model, blind_inputs(inputs), inputs["labels"]),
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
        return (loss, {"token_nll": nll}) if return_outputs else loss


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
    """Calls a function with the step number after given steps, in all processes, the model in evaluation mode."""

    def __init__(self, steps: set[int], action: Callable[[int], None]) -> None:
        self.steps = steps
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self.steps:
            model.eval()
            self.action(state.global_step)
            model.train()


def arguments(
    settings: config.Training, state_dir: Path, seed: int, steps: int, means: dict[str, Any] | None = None
) -> TrainingArguments:
    """Trainer's arguments for one run of so many steps; `state_dir` holds private checkpoints for resuming.

    `means` are further arguments of Trainer, about how the training is fitted onto the machines.

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
        **(means or {}),
    )
    if trainer.fsdp and settings.bf16:
        # By default gradients, too, would be summed in half precision.
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        trainer.fsdp_plugin_args["mixed_precision_policy"] = precision
    if trainer.n_gpu > 1:
        # Trainer would spread one process over all GPUs that it sees, and a batch over them.
        trainer._n_gpu = 1
    # Where Trainer does not notice the others, each process would train on everything by itself.
    assert trainer.world_size == processes.count(), "Trainer sees another number of processes"
    return trainer


def _means(model: PreTrainedModel, scaling: ParallelJob | None) -> dict[str, Any]:
    """Trainer's arguments for how a training is fitted onto the machines."""
    if scaling is None:
        return {}
    loading = {"dataloader_num_workers": scaling.loaders}
    # One process has nobody to share with.
    if not scaling.fsdp or processes.count() == 1:
        return loading | {"activation_checkpointing": scaling.gradient_checkpointing}
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    layers = {type(layer).__name__ for part in lists for layer in part} & set(model._no_split_modules or ())
    sharding = {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": sorted(layers),
        "activation_checkpointing": scaling.gradient_checkpointing,
        # The first process gives the others their share; see `prior.models.weights`.
        "cpu_ram_efficient_loading": True,
    }
    # Gradients that wait for the last row of a step would lie in each process whole.
    at_once = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return loading | {"fsdp": True, "fsdp_config": sharding, "accelerator_config": at_once}


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
    until: int | None = None,
    scaling: ParallelJob | None = None,
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
        Given the number of steps of the whole plan, says after which of them to call what. All processes call it.
    keep
        Save after the last step, too, so that a later start has nothing left to train.
    until
        The last step to take; the learning rate goes on as if all of them came.
    scaling
        How to fit the training onto the machines, which changes nothing but rounding. With ``fsdp`` the model
        is sharded in place, and may be hollow in all processes but the first (see `prior.models.weights`).

    Returns
    -------
    The number of optimizer steps taken so far.

    Raises
    ------
    Stopped
        If it was asked to stop (see `prior.stopping`); it has been saved and goes on from there when called again.
    """
    pack(model)
    plan = plan_rows(packer.lengths(order.tolist()), order, settings.row_tokens)
    steps = -(-len(plan) // settings.rows_per_step)
    last = steps if until is None else min(until, steps)
    callbacks = [AtSteps(*at_steps(steps))] if at_steps else []
    kind = objective.kind if objective else "ntp"
    loop = CaptionLoop(
        model=model,
        args=arguments(settings, state_dir, seed, steps, _means(model, scaling)),
        train_dataset=Rows(plan[: last * settings.rows_per_step], packer.row),
        horizon=steps,
        weighting=REGISTRY[kind].function,
        parameters=objective.parameters() if objective else {},
        callbacks=callbacks,
    )
    resume(loop, keep)
    return last


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


@contextmanager
def _without_warning() -> Iterator[None]:
    """A single process is told each time that there are no others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _only(batch: list[Batch]) -> Batch:
    """A row is a batch already."""
    return batch[0]
