"""The plain way: VLMEvalKit's own ``vlmeval.run`` around one of our checkpoints and benchmarks that lie here."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from eval import tsv
from eval.vlmevalkit.kit import fresh_folder, kit
from prior.config import Evaluation, Preset
from prior.errors import UserError
from prior.models import architecture_of

# Its settings that would bring in another model, or a judge: answers are read by rules ('exact_matching').
FOREIGN = ("data", "model", "config", "base_url", "api_mode", "use_verifier", "judge", "judge_args", "judge_base_url")
# Environment variables of its users that would lead answers elsewhere, cut them, or hide that there is none.
LEADING_ASTRAY = ("MMEVAL_ROOT", "SPLIT_THINK", "SKIP_ERR", "FWD_API")


def launch(
    checkpoint: Path,
    benchmarks: Sequence[Path],
    work_dir: Path,
    name: str,
    settings: Evaluation,
    predictions: Path | None = None,
    further: Sequence[str] = (),
) -> dict[str, pd.DataFrame]:
    """Have VLMEvalKit ask a checkpoint and score its answers.

    Parameters
    ----------
    work_dir
        Receives a new folder `name` with all that VLMEvalKit writes, and its log.
    predictions
        Folder of ``<benchmark>.tsv`` as ``eval predict`` writes them: score these, and ask nothing.
    further
        Arguments of ``vlmeval.run``, such as ``--limit 10``.

    Returns
    -------
    VLMEvalKit's score sheet of each benchmark, as its own file has it; none if `further` asks for no scores.

    Raises
    ------
    UserError
        If something is missing or refused, or VLMEvalKit failed on a benchmark, which it would pass over in silence.
    """
    if Path(name).name != name or name == "logs":
        raise UserError(f"--name {name}: VLMEvalKit makes a folder of it beside its logs; give a plain name")
    answers = {path: predictions / path.name for path in benchmarks} if predictions else {}
    for path in answers.values():
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; name the folder that holds it")
    architecture_of(checkpoint)
    folder = work_dir / name
    if folder.exists():
        raise UserError(f"{folder}: VLMEvalKit would take over the answers that lie there; delete it or name another")
    kinds = {path: tsv.kind_of(path.stem, list(tsv.validate(path, official=True).columns)) for path in benchmarks}
    for path, kind in kinds.items():
        if kind == "caption":
            raise UserError(f"{path}: VLMEvalKit asks for replies, and knows no captions; leave it out")
    # An official name would have the file replaced by a download, and some names are not scored at all.
    names = {path: f"{path.stem}_local" for path in benchmarks}
    modules = kit(progress=True)
    from vlmeval import run

    from eval.vlmevalkit.model import Checkpoint

    arguments = sys.argv
    environment = {key: os.environ.pop(key) for key in LEADING_ASTRAY if key in os.environ}
    logging.disable(logging.NOTSET)
    try:
        sys.argv = ["vlmeval", *further]
        given = run.parse_args()
        for option in FOREIGN:
            if getattr(given, option):
                raise UserError(f"--{option.replace('_', '-')}: another model, data set or judge; leave it out")
        with fresh_folder(modules) as data:
            for path, kind in kinds.items():
                (data / f"{names[path]}.tsv").symlink_to(path.resolve())
                choice = kind in ("circular", "choice")
                # Without an address and an md5 the file is taken as it is.
                (modules.choice if choice else modules.yes_no).DATASET_URL[names[path]] = ""
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise UserError(f"{folder}: no folder can be made there ({error.strerror}); name another") from None
            for path, answered in answers.items():
                shutil.copyfile(answered, folder / f"{name}_{names[path]}.tsv")
            run.supported_VLM[name] = partial(Checkpoint, checkpoint, settings.max_new_tokens, settings.threads)
            sys.argv += ["--data", *names.values(), "--model", name, "--work-dir", str(work_dir)]
            sys.argv += ["--judge", "exact_matching", *(["--mode", "eval"] if answers else [])]
            run.main()
    finally:
        sys.argv = arguments
        os.environ.update(environment)
    only_asked = given.mode == "infer" and not answers
    sheets: dict[str, pd.DataFrame | None] = {}
    failures: list[UserError] = []
    for path in benchmarks:
        try:
            sheets[path.stem] = _outcome(folder, names[path], only_asked)
        except UserError as error:
            failures.append(error)
    if failures:
        if not sheets:
            # Its log beside it says why; the folder would only be in the way of another try.
            shutil.rmtree(folder)
        raise failures[0]
    return {benchmark: sheet for benchmark, sheet in sheets.items() if sheet is not None}


def _outcome(folder: Path, dataset: str, only_asked: bool) -> pd.DataFrame | None:
    """The score sheet of one data set; VLMEvalKit ends well even where it failed on one."""
    entry = json.loads((folder / "status.json").read_text(encoding="utf-8"))["datasets"].get(dataset, {})
    problem = entry.get("error_message") or (not only_asked and entry.get("skip_reason"))
    stem = f"{folder.name}_{dataset}"
    sheets = [path for ending in ("acc", "score") if (path := folder / f"{stem}_{ending}.csv").is_file()]
    if problem or not (folder / f"{stem}.tsv").is_file() or not (sheets or only_asked):
        reason = " ".join(str(problem or "there are no results").split())
        raise UserError(f"{dataset}: VLMEvalKit failed on it ({reason}); see its log in {folder.parent / 'logs'}")
    return pd.read_csv(sheets[0]) if sheets else None


def readable_name(checkpoint: Path) -> str:
    """``hlvlm-ntp-40k-seed0-tuned`` for ``…/runs/hlvlm/ntp/40k/seed0/tuned/final``."""
    return "-".join(part for part in checkpoint.absolute().parts[-6:] if part not in ("/", "final"))


def asked(preset: Preset | None, names: Sequence[str]) -> list[str]:
    """The benchmarks to ask: `names`, or every one of the preset that VLMEvalKit can ask.

    Raises
    ------
    UserError
        If the preset has a benchmark answered in a way that VLMEvalKit does not know, or there is none to ask.
    """
    entries: Mapping[str, str] = {name: entry.answer for name, entry in preset.benchmarks.items()} if preset else {}
    for name in names:
        if preset and name not in entries:
            raise UserError(f"benchmarks: preset '{preset.name}' has no entry '{name}'; add it there")
        if entries.get(name, "generate") != "generate":
            raise UserError(f"{name}: VLMEvalKit asks for replies, it knows no `answer: {entries[name]}`; leave it out")
    chosen = list(names) or [name for name, answer in entries.items() if answer == "generate"]
    if not chosen:
        raise UserError("nothing to ask; name a --benchmark, or a --preset that has some with `answer: generate`")
    return chosen
