"""One run: an LVLM is built, pre-trained under an objective, perhaps tuned, and leaves files that explain themselves.

A run's folder holds ``final/`` (Hugging Face), ``run.yaml`` (everything that went in), ``log.jsonl`` (every step),
``heldout.csv`` (loss on held-out captions over the steps) and ``token_logprobs.arrow``.
"""

from __future__ import annotations

import csv
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
import yaml

from prior import config, models, processes
from prior.documents import Documents, nested_subset
from prior.errors import UserError
from prior.files import link_or_copy, whole, write_text
from prior.models.attention import pack, unpack
from prior.packing import Packer, repeat_order
from prior.scores import token_logprobs
from prior.state import append_lines, private, read_lines
from prior.tokens import ragged_array
from prior.training import LOG, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "numpy", "prior-vlm")


def pretrain(
    run: config.Run,
    preset: config.Preset,
    tokenizer: PreTrainedTokenizerFast,
    llm: Path,
    vision: Path | None,
    documents: Documents,
    heldout: Documents,
    out: Path,
    state_dir: Path,
    fingerprints: dict[str, str],
    keep: bool = False,
) -> None:
    """Pre-train one LVLM on one epoch of a nested subset of the captions.

    `keep` is for a job of several runs: should it be started again, this one has nothing left to train. Call
    `prior.state.clear` when all are done.
    """
    settings = getattr(preset.architectures, run.arch)
    objective = preset.objectives[run.objective]
    training = preset.pretraining(run.arch)
    job = preset.jobs.pretrain
    architecture = models.build(run.arch, settings, tokenizer, llm, vision, run.seed, fsdp=job.fsdp)
    subset = nested_subset(documents, config.parse_tokens(run.scale), run.seed)
    order = repeat_order(subset, training.epochs, run.seed)
    packer = Packer(documents, tokenizer.bos_token_id, architecture)
    curve = Heldout(architecture, heldout, tokenizer.bos_token_id, state_dir / "heldout.jsonl")
    used = {"objective": objective, "architecture": settings, "training": training}
    points, kept = preset.evaluation.trajectory_points, preset.kept_steps(run.objective, run.scale)

    def on_the_way(steps: int) -> tuple[set[int], Any]:
        if kept and kept[-1] >= steps:
            raise UserError(
                f"trajectory: a checkpoint is to be kept at step {kept[-1]}, but {run.arch} at {run.scale} ends after "
                f"step {steps}; lower trajectory.until, or make its steps smaller"
            )
        # The last step is measured when all is done.
        measured = {round(steps * k / points) for k in range(1, points)} - {steps}

        def measure_and_keep(step: int) -> None:
            if step in measured:
                curve.measure(step)
            if step in kept:
                export(architecture, tokenizer, state_dir / f"step{step}", training.bf16)

        return measured | set(kept), measure_and_keep

    described = {"captions": len(heldout), "points": points, "kept": kept}
    made_from = {"run": run, "settings": used, "heldout": described, "inputs": fingerprints}
    with private(state_dir, keep=keep, **made_from), processes.first_only(lambda: whole(out)) as folder:
        steps = train(
            architecture.model,
            packer,
            order,
            training,
            seed=run.seed,
            state_dir=state_dir,
            objective=objective,
            at_steps=on_the_way,
            keep=keep,
            until=objective.steps,
            scaling=job,
        )
        curve.finish(steps)
        if folder is not None:
            folder.mkdir(parents=True)
        export(architecture, tokenizer, folder and folder / "final", training.bf16)
        if folder is None:
            return
        curve.write(folder)
        shutil.copy(state_dir / LOG, folder)
        for step in kept:
            shutil.copytree(state_dir / f"step{step}", folder / f"step{step}", copy_function=link_or_copy)
        _describe(
            folder / "run.yaml",
            run=run._asdict() | {"stage": "pretrain", "steps": steps},
            settings=used,
            tokens={"captions": len(subset), "caption_tokens": int(documents.targets.lengths[subset].sum())},
            model=architecture.model,
            fingerprints=fingerprints,
        )


def tune(
    run: config.Run,
    preset: config.Preset,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerFast,
    documents: Documents,
    out: Path,
    state_dir: Path,
    fingerprints: dict[str, str],
    keep: bool = False,
) -> None:
    """Teach a pre-trained LVLM to answer: the same questions in the same order for every run; `keep` as above."""
    settings = preset.tune
    assert settings is not None
    used = {"architecture": getattr(preset.architectures, run.arch), "tune": settings}
    architecture = models.load(checkpoint, fsdp=preset.jobs.tune.fsdp)
    architecture.set_trainable(used["architecture"].trainable)
    order = np.random.default_rng([settings.seed, 29]).permutation(len(documents))
    order = repeat_order(order, settings.training.epochs, settings.seed)
    packer = Packer(documents, tokenizer.bos_token_id, architecture)
    made_from = {"run": run, "settings": used, "inputs": fingerprints}
    with private(state_dir, keep=keep, **made_from), processes.first_only(lambda: whole(out)) as folder:
        steps = train(
            architecture.model,
            packer,
            order,
            settings.training,
            seed=settings.seed,
            state_dir=state_dir,
            keep=keep,
            scaling=preset.jobs.tune,
        )
        if folder is not None:
            folder.mkdir(parents=True)
        export(architecture, tokenizer, folder and folder / "final", settings.training.bf16)
        if folder is None:
            return
        shutil.copy(state_dir / LOG, folder)
        _describe(
            folder / "run.yaml",
            run=run._asdict() | {"stage": "tuned", "steps": steps},
            settings=used,
            tokens={"questions": len(documents), "answer_tokens": int(documents.labels.sum())},
            model=architecture.model,
            fingerprints=fingerprints,
        )


class Heldout:
    """Loss on held-out captions, with and without their pictures, at any step of a training.

    Rows are kept in `file`, among the private state, so that they are there when an interrupted training goes on.
    """

    def __init__(self, architecture: models.Architecture, documents: Documents, bos_token_id: int, file: Path) -> None:
        self.architecture = architecture
        self.documents = documents
        self.packers = {
            "with": Packer(documents, bos_token_id, architecture),
            "without": Packer(documents.without_pictures(), bos_token_id),
        }
        self.logprobs: dict[str, np.ndarray] = {}
        self.last: list[dict[str, Any]] = []
        self.file = file

    def measure(self, step: int) -> None:
        """Keep the rows of this step; all processes have to call it."""
        rows = self._rows(step)
        if processes.first():
            append_lines(self.file, rows)

    def finish(self, last: int) -> None:
        """Measure the last step, whose log-probabilities `write` stores, too; all processes have to call it."""
        self.last = self._rows(last)

    def _rows(self, step: int) -> list[dict[str, Any]]:
        """One row per picture mode and metric."""
        rows = []
        self.architecture.model.eval()
        relevant = None if self.documents.relevant is None else self.documents.relevant.values
        for picture, packer in self.packers.items():
            logprob = token_logprobs(self.architecture.model, packer)
            self.logprobs[picture] = logprob
            parts = {"loss": np.ones(len(logprob), dtype=bool)}
            if relevant is not None and not np.isnan(relevant).all():
                parts |= {"loss_relevant": relevant == 1, "loss_other": relevant == 0}
            for metric, mask in parts.items():
                value = -float(logprob[mask].mean(dtype=np.float64)) if mask.any() else float("nan")
                rows.append(
                    {"step": step, "picture": picture, "metric": metric, "value": value, "n_items": int(mask.sum())}
                )
        return rows

    def write(self, folder: Path) -> None:
        """``heldout.csv`` has every measured step and ``token_logprobs.arrow`` the last."""
        # A training may have been told to end at a step that is measured on the way.
        rows = [row for row in read_lines(self.file) if row["step"] < self.last[0]["step"]] + self.last
        with (folder / "heldout.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        targets = self.documents.targets
        columns = {
            "input_ids": ragged_array(targets, pa.int32()),
            "logprob": ragged_array(targets.beside(self.logprobs["with"]), pa.float32()),
            "logprob_without_picture": ragged_array(targets.beside(self.logprobs["without"]), pa.float32()),
        }
        if self.documents.relevant is not None:
            columns["relevant"] = ragged_array(self.documents.relevant, pa.float32())
        table = pa.table({"id": pa.array(self.documents.ids), **columns})
        with pa.ipc.new_file(str(folder / "token_logprobs.arrow"), table.schema) as arrow:
            arrow.write_table(table)


def export(
    architecture: models.Architecture, tokenizer: PreTrainedTokenizerFast, folder: Path | None, bf16: bool
) -> None:
    """Write a model, in training or trained, as a Hugging Face folder in the precision that it is trained in.

    The first process writes; all have to call it.
    """
    unpack(architecture.model)
    if folder is not None and processes.first():
        # First, since an architecture may bring a chat template of its own.
        tokenizer.save_pretrained(folder)
    architecture.save(folder, torch.bfloat16 if bf16 else torch.float32)
    pack(architecture.model)


def _describe(
    path: Path,
    *,
    run: dict[str, Any],
    settings: dict[str, Any],
    tokens: dict[str, int],
    model: torch.nn.Module,
    fingerprints: dict[str, str],
) -> None:
    """Everything that a reader needs to make the same run again."""
    count = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    description = {
        **run,
        "settings": {name: value.model_dump(mode="json") for name, value in settings.items()},
        "tokens": tokens,
        "parameters": {"all": count, "trainable": trainable},
        "inputs": fingerprints,
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "commit": commit(),
    }
    write_text(path, yaml.safe_dump(description, sort_keys=False))


def commit() -> str:
    """The git commit of the code, with ``-dirty`` where code differs from it; 'unknown' outside of a checkout."""
    root = Path(__file__).resolve().parent.parent
    code = [path for path in ("prior", "eval", "cluster", "workflow", "Snakefile") if (root / path).exists()]
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        # What a user's cluster is like is no part of the code, nor is what was fetched.
        others = ":(exclude)workflow/profiles", ":(exclude)workflow/presets/*.lock"
        changed = _git(root, "status", "--porcelain", "--", *code, *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
