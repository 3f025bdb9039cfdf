"""The benchmarks: where each comes from, and those made here, each a module of its own.

The benchmark ``Name`` is made by the module ``name``, which has one or both of

``rows(items, seed, corpus_seed, image_size)``
    from the generated world; it may say in ``FEWEST`` how many items it needs,
``corpus_rows(corpus, items, seed)``
    from the captioned pictures of a held-out split, whatever the corpus is.

Both return a row (a dict, or a line of a table) for each question, in VLMEvalKit's columns.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

from prior.config import Benchmark, Corpus, FolderCorpus, Preset, ScenesCorpus, WebDatasetCorpus
from prior.errors import UserError
from prior.files import whole

if TYPE_CHECKING:
    from datasets import Dataset

# The paper's benchmarks as VLMEvalKit names them. A preset need not say that these are to be fetched.
OFFICIAL = ("MME", "POPE", "MMBench_DEV_EN", "MMStar", "SEEDBench_IMG")


def maker(name: str) -> ModuleType | None:
    """The module that makes a benchmark; None if it is not made here."""
    path = f"{__name__}.{name.lower()}"
    if not name.isidentifier() or importlib.util.find_spec(path) is None:
        return None
    module = importlib.import_module(path)
    return module if hasattr(module, "rows") or hasattr(module, "corpus_rows") else None


def is_official(name: str, preset: Preset) -> bool:
    """Whether an entry of a preset is VLMEvalKit's file and not made here.

    What the preset says holds; without a word the paper's five are VLMEvalKit's, unless they can be made here.
    """
    source = preset.benchmarks[name].source
    if source is not None:
        return source == "official"
    return name in OFFICIAL and not (maker(name) is not None and isinstance(preset.corpus, ScenesCorpus))


def check_benchmarks(preset: Preset) -> None:
    """Refuse settings with which a benchmark cannot be made; what is in its table is checked when it is made.

    Raises
    ------
    UserError
        Naming the setting and its remedy.
    """
    scenes = isinstance(preset.corpus, ScenesCorpus)
    for name, entry in preset.benchmarks.items():
        where = f"preset '{preset.name}': benchmarks.{name}"
        if name != "CHAIR" and entry.answer == "caption":
            raise UserError(f"{where}.answer: captions are scored by CHAIR alone; write `answer: generate`")
        if is_official(name, preset):
            if entry.answer == "caption":
                raise UserError(f"{where}.source: VLMEvalKit has no CHAIR; leave `source` out")
            continue
        if scenes and preset.tune is None and entry.answer == "generate":
            raise UserError(
                f"{where}: with `tune: null` no model is taught to answer; leave it out or write `answer: likelihood`"
            )
        module = maker(name)
        if module is None:
            if entry.source == "generated":
                raise UserError(f"{where}.source: there is no eval/benchmarks/{name.lower()}.py that could make it")
            continue
        if name == "CHAIR":
            _check_chair(where, entry, preset.corpus)
            continue
        if not scenes and not hasattr(module, "corpus_rows"):
            remedy = ", write `source: official`" if name in OFFICIAL else ""
            raise UserError(
                f"{where}: it is made from generated scenes; use `corpus.kind: scenes`{remedy} or leave it out"
            )
        if scenes and entry.items < (fewest := getattr(module, "FEWEST", 1)):
            raise UserError(f"{where}.items: {entry.items} cannot fill every category; ask for {fewest} or more")


def _check_chair(where: str, entry: Benchmark, corpus: Corpus) -> None:
    if entry.answer != "caption":
        raise UserError(f"{where}.answer: it is about captions; write `answer: caption`")
    if isinstance(corpus, WebDatasetCorpus):
        raise UserError(f"{where}: what is in the pictures of a WebDataset nobody knows; leave it out")
    if isinstance(corpus, FolderCorpus) and not (entry.objects and entry.synonyms):
        raise UserError(f"{where}: which objects are in these pictures? name files of them in `objects` and `synonyms`")


def make(name: str, preset: Preset, corpus: Dataset | None) -> list[dict[str, Any]] | pd.DataFrame:
    """The rows of a benchmark that is made here.

    Parameters
    ----------
    corpus
        The held-out split, for one that is made from captioned pictures.
    """
    module, entry = maker(name), preset.benchmarks[name]
    if module is None:
        raise UserError(f"benchmarks.{name}: there is no eval/benchmarks/{name.lower()}.py that could make it")
    if corpus is not None:
        return module.corpus_rows(corpus, entry.items, entry.seed)
    if not isinstance(preset.corpus, ScenesCorpus):
        raise UserError(f"benchmarks.{name}: it is made from held-out captions; name their folder with --val")
    return module.rows(entry.items, entry.seed, preset.corpus.seed, preset.corpus.image_size)


def write_tsv(rows: Sequence[dict[str, Any]] | pd.DataFrame, path: str | Path) -> None:
    """Write a benchmark as VLMEvalKit reads it: tab-separated UTF-8 with a header, pictures as base64 text."""
    with whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False, encoding="utf-8", quoting=csv.QUOTE_MINIMAL)
