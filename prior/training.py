"""The one training loop: a thin subclass of `transformers.Trainer` over packed rows, for every stage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from prior import config
from prior.loss import token_nll, weighted_ntp_loss
from prior.models.attention import pack
from prior.packing import Batch, Packer, blind_inputs, model_inputs, plan_rows
from prior.state import append_lines, mark_whole, read_lines, rewind
from prior.weighting import REGISTRY, Context, Weighting, ntp

LOG = "log.jsonl"


class Rows(Dataset[Batch]):
    """Batches in the order in which they are trained on."""

    def __init__(self, plan: Sequence[Sequence[int]], make: Callable[[Sequence[int]], Batch]) -> None:
        self.plan = plan
        self.make = make

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
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
        self.tokens_seen = 0
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
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_whole(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

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
        means = {name: total / count if count else None for name, (total, count) in self.watched.items()}
        self.watched.clear()
        line = {
            "step": self.state.global_step,
            **means,
            "objective": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "lr": logs["learning_rate"],
            "tokens": self.tokens_seen,
            "seconds": round(time.monotonic() - self.started, 3),
        }
        append_lines(self.log_file, [line])


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


class AtSteps(TrainerCallback):
    """Calls a function with the step number after given steps, the model being in evaluation mode."""

    def __init__(self, steps: set[int], action: Callable[[int], None]) -> None:
        self.steps = steps
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self.steps:
            model.eval()
            self.action(state.global_step)
            model.train()


def arguments(settings: config.Training, state_dir: Path, seed: int, steps: int) -> TrainingArguments:
    """Trainer's arguments for one run of so many steps; `state_dir` holds private checkpoints for resuming."""
    return TrainingArguments(
        output_dir=str(state_dir),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.rows_per_step,
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
        dataloader_pin_memory=torch.cuda.is_available(),
    )


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

    Returns
    -------
    The number of optimizer steps taken.
    """
    pack(model)
    rows = Rows(plan_rows(packer.lengths(order.tolist()), order, settings.row_tokens), packer.row)
    steps = -(-len(rows) // settings.rows_per_step)
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
    resume(loop)
    if loop.state.global_step != steps:
        raise RuntimeError(f"training stopped at step {loop.state.global_step} of {steps}")
    return steps


def resume(loop: Loop) -> None:
    """Run the loop, from the last whole private checkpoint if there is one."""
    checkpoint, _ = rewind(loop.log_file.parent)
    logged = read_lines(loop.log_file)
    loop.tokens_seen = logged[-1]["tokens"] if logged else 0
    loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _only(batch: list[Batch]) -> Batch:
    """A row is a batch already."""
    return batch[0]
