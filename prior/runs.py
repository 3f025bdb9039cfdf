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
from prior.files import whole, write_text
from prior.models.attention import unpack
from prior.packing import Documents, Packer, nested_subset, repeat_order
from prior.scores import token_logprobs
from prior.state import append_lines, private, read_lines
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
    architecture = models.build(run.arch, settings, tokenizer, llm, vision, run.seed)
    subset = nested_subset(documents.targets.lengths, config.parse_tokens(run.scale), run.seed)
    order = repeat_order(subset, preset.pretrain.epochs, run.seed)
    packer = Packer(documents, tokenizer.bos_token_id, architecture)
    curve = Heldout(architecture, heldout, tokenizer.bos_token_id, state_dir / "heldout.jsonl")
    used = {"objective": objective, "architecture": settings, "training": preset.pretrain}
    count = preset.evaluation.trajectory_points

    def points(steps: int) -> tuple[set[int], Any]:
        # The last step is measured when all is done.
        return {round(steps * k / count) for k in range(1, count)} - {steps}, curve.measure

    measured = {"captions": len(heldout), "points": count}
    made_from = {"run": run, "settings": used, "heldout": measured, "inputs": fingerprints}
    with private(state_dir, keep=keep, **made_from), processes.first_only(lambda: whole(out)) as folder:
        steps = train(
            architecture.model,
            packer,
            order,
            preset.pretrain,
            seed=run.seed,
            state_dir=state_dir,
            objective=objective,
            at_steps=points,
            keep=keep,
        )
        if folder is None:
            return
        folder.mkdir(parents=True)
        curve.write(folder, steps)
        _finish(folder, state_dir, architecture, tokenizer)
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
    architecture = models.load(checkpoint)
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
        )
        if folder is None:
            return
        folder.mkdir(parents=True)
        _finish(folder, state_dir, architecture, tokenizer)
        _describe(
            folder / "run.yaml",
            run=run._asdict() | {"stage": "tuned", "steps": steps},
            settings=used,
            tokens={"questions": len(documents), "answer_tokens": int(documents.targets.lengths.sum())},
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
        self.file = file

    def measure(self, step: int) -> None:
        """Keep the rows of this step."""
        append_lines(self.file, self.rows(step))

    def rows(self, step: int) -> list[dict[str, Any]]:
        """One row per picture mode and metric; the log-probabilities of the last call are what `write` stores."""
        rows = []
        self.architecture.model.eval()
        relevant = self.documents.relevant
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

    def write(self, folder: Path, last: int) -> None:
        """Measure the last step; ``heldout.csv`` has every measured step and ``token_logprobs.arrow`` the last."""
        rows = read_lines(self.file) + self.rows(last)
        with (folder / "heldout.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        targets = self.documents.targets
        offsets = pa.array(targets.offsets.astype(np.int32))
        columns = {
            "input_ids": pa.array(targets.values, pa.int32()),
            "logprob": pa.array(self.logprobs["with"]),
            "logprob_without_picture": pa.array(self.logprobs["without"]),
        }
        if self.documents.relevant is not None:
            columns["relevant"] = pa.array(self.documents.relevant)
        lists = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
        table = pa.table({"id": pa.array(self.documents.ids), **lists})
        with pa.ipc.new_file(str(folder / "token_logprobs.arrow"), table.schema) as arrow:
            arrow.write_table(table)


def _finish(
    folder: Path, state_dir: Path, architecture: models.Architecture, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Export the trained model and its log."""
    unpack(architecture.model)
    architecture.save(folder / "final")
    tokenizer.save_pretrained(folder / "final")
    shutil.copy(state_dir / LOG, folder)


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
        # What a user's cluster is like is no part of the code.
        changed = _git(root, "status", "--porcelain", "--", *code, ":(exclude)workflow/profiles")
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
