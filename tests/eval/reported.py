"""A folder of imagined results, and the study they are of, for tests of the page that shows them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pandas as pd

from eval import display
from eval.claims.rule import COLUMNS
from eval.outcomes import OUTCOMES
from eval.results import RUN, read_paper
from eval.study import Study
from prior.config import Preset
from prior.presets import load_preset
from tests.eval import synthetic

ROOT = Path(__file__).resolve().parents[2]
# One grey pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")
VERDICTS = ("shown", "not shown", "contradicted", "not testable at this scale")
# A result that a preset cannot give.
ABSENT = "cost"


def study(preset: str = "imagined", seeds: int = 2, dirty: str = "") -> tuple[Study, Preset]:
    """A study with a ``run.yaml`` for every run, and its preset."""
    metrics = synthetic.metrics(scales=(40_000, 120_000), seeds=seeds)
    settings = load_preset("tiny").model_copy(update={"name": preset})
    models = metrics[metrics.arch != "baseline"]
    provenance = {}
    for arch, objective, scale, seed in models[RUN].drop_duplicates().itertuples(index=False):
        run = f"{arch}/{objective}/{scale // 1000}k/seed{seed}"
        provenance[f"runs/{run}/pretrain"] = entry(arch, objective, f"{scale // 1000}k", seed, f"0123456789ab{dirty}")
    return Study(
        preset=preset,
        settings=settings.statistics,
        metrics=metrics,
        items=synthetic.items(metrics),
        paper=read_paper(ROOT / "results/reported"),
        provenance=provenance,
    ), settings


def entry(arch: str, objective: str, scale: str, seed: int, commit: str) -> dict[str, Any]:
    return {
        **{"arch": arch, "objective": objective, "scale": scale, "seed": seed, "stage": "pretrain"},
        **{"steps": 60 + seed, "settings": {"objective": {"kind": objective}, "training": {"epochs": 1.0}}},
        **{"tokens": {"captions": 700 + seed}, "inputs": {"corpus": "b38f"}, "versions": {"torch": "2.0"}},
        "commit": commit,
    }


def results(folder: Path, known: Study, text: str = "") -> Path:
    """Tables, figures and claims in `folder`: each result is the number of its arms; `text` stands in all of them."""
    (folder / "tables").mkdir(parents=True)
    (folder / "figures").mkdir()
    arms = known.metrics[known.metrics.arch != "baseline"][["arch", "objective", "scale_tokens"]].drop_duplicates()
    largest = arms[arms.scale_tokens == arms.scale_tokens.max()].assign(value=1.5)
    for name, heading in OUTCOMES.items():
        table, shown = largest, [display.Display(f"{heading.title}{text}", _cells(largest, text), f"A note.{text}")]
        if name == ABSENT:
            table = pd.DataFrame({"missing": [f"{heading.title}: nothing was measured{text}"]})
            shown = [display.Display(heading.title, pd.DataFrame({"not given": ["nothing was measured"]}))]
        table.to_csv(folder / f"tables/{name}.csv", index=False)
        (folder / f"tables/{name}.html").write_text(display.html(shown), encoding="utf-8")
        if heading.figure:
            (folder / f"figures/{name}.png").write_bytes(PNG)
    numbers = [(-1.614, -3.2, 0.1, 8, 0.0781, 0.31), (0.084, 0.07, 0.1, 80, 1e-6, 1e-5)]
    claims = [
        {**dict(zip(("value", "low", "high", "n", "p", "p_holm"), numbers[place % 2], strict=True)), "verdict": verdict}
        | {"claim": f"Claim {place} of the paper{text}", "statistic": f"statistic {place}{text}", "paper": "+19"}
        for place, verdict in enumerate(VERDICTS)
    ]
    claims[0] |= {"runs": "hlvlm: ntp, prior; 120k"}
    claims[1] |= {"runs": "hlvlm, ulvlm: ntp; every scale"}
    claims[-1] |= dict.fromkeys(("value", "low", "high", "n", "p", "p_holm")) | {"why": f"one seed{text}"}
    pd.DataFrame(claims, columns=COLUMNS).to_csv(folder / "claims.csv", index=False)
    return folder


def _cells(arms: pd.DataFrame, text: str) -> pd.DataFrame:
    """Rows named as results name them, wide enough not to fit a telephone."""
    rows = [
        {"": display.who(arm.arch, arm.objective, picture)} | {f"column {n}": f"1.50 ± 0.{n}{text}" for n in range(12)}
        for arm in arms.itertuples()
        for picture in ("with", "without")
    ]
    return pd.DataFrame(rows)
