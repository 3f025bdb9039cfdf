"""Metrics and items of an imagined run, with known exponents and known accuracies."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from eval.results import ITEM_COLUMNS, METRIC_COLUMNS

EXPONENTS = {"ntp": 0.20, "prior": 0.26}
MCQ, YES_NO = ("MMStar", "MMBench", "SEEDBench", "CaptionChoice"), ("MME", "POPE")
MME_CATEGORIES = ("existence", "count", "position", "color", "numerical_calculation")


def metrics(
    scales: tuple[int, ...] = (40_000, 120_000, 400_000),
    seeds: int = 3,
    archs: tuple[str, ...] = ("hlvlm", "ulvlm"),
    benchmarks: tuple[str, ...] = ("MME", "MMStar", "POPE", "MMBench", "SEEDBench"),
    spans: bool = True,
    points: int = 6,
    noise: float = 0.01,
    rng_seed: int = 0,
) -> pd.DataFrame:
    """A ``metrics.csv``: held-out loss falls as A·x^-b with `EXPONENTS`, SEEDBench stays at chance."""
    rng = np.random.default_rng(rng_seed)
    rows: list[tuple[object, ...]] = []

    def jitter() -> float:
        return float(np.exp(noise * rng.standard_normal()))

    stage = "tuned" if set(benchmarks) - {"CaptionChoice"} else "pretrain"
    for arch, objective, scale, seed in product(archs, EXPONENTS, scales, range(seeds)):
        steps = scale // 2000
        levels = {"loss": 12.0, "loss_relevant": 14.0, "loss_other": 9.0 if objective == "ntp" else 21.0}
        for metric, level in levels.items():
            if metric != "loss" and not spans:
                continue
            end = level * (1.08 if arch == "ulvlm" else 1) * scale ** -EXPONENTS[objective]
            trajectory = points if scale == max(scales) else 1
            for point in range(1, trajectory + 1):
                value = end * (1 + 0.8 * (1 - point / trajectory) ** 2) * jitter()
                key = (arch, objective, scale, seed, "pretrain", steps * point // trajectory, "with", "heldout")
                rows.append((*key, metric, value, 9000, "nats/token"))
            blind = (arch, objective, scale, seed, "pretrain", steps, "without", "heldout")
            rows.append((*blind, metric, end * 1.3 * jitter(), 9000, "nats/token"))
        gain = (0.16 if objective == "prior" else 0.1) * np.log10(scale / 20_000) / 1.3
        for picture, name in product(("with", "without"), benchmarks):
            step = 300 if stage == "tuned" else steps
            key = (arch, objective, scale, seed, stage, step, picture, name)
            skill = 0.0 if picture == "without" or name == "SEEDBench" else (gain + 0.35) * jitter()
            skill += 0.004 * rng.standard_normal() if noise else 0.0
            for metric, value in _scores(name, skill).items():
                rows.append(
                    (*key, metric, value, 200, "points" if metric in ("perception", "reasoning") else "percent")
                )
    for name in benchmarks:
        constant = ("always_yes", "always_no") if name in YES_NO else ("always_A",)
        for objective, copies in (("random", 3), *((entry, 1) for entry in constant)):
            for seed in range(copies):
                wobble = 0.01 * rng.standard_normal() if objective == "random" else 0.0
                for metric, value in _scores(name, wobble, objective).items():
                    key = ("baseline", objective, 0, seed, "none", 0, "without", name)
                    rows.append((*key, metric, value, 200, "points" if metric in ("perception",) else "percent"))
    return pd.DataFrame(rows, columns=METRIC_COLUMNS)


def items(table: pd.DataFrame, asked: int = 60, rng_seed: int = 1) -> pd.DataFrame:
    """An ``items.parquet`` for the benchmark rows of `table`."""
    rng = np.random.default_rng(rng_seed)
    keys = ["arch", "objective", "scale_tokens", "seed", "stage", "step", "picture", "benchmark"]
    runs = table[(table.metric == "accuracy")]
    frames = []
    for key, accuracy in zip(runs[keys].itertuples(index=False), runs.value, strict=True):
        name = key.benchmark
        answers = np.resize(["Yes", "No"] if name in YES_NO else list("ABCD"), asked)
        group = [str(index // (2 if name in YES_NO else 4)) for index in range(asked)]
        category = np.resize(MME_CATEGORIES, asked) if name == "MME" else "any"
        frame = pd.DataFrame({"item": [str(index) for index in range(asked)], "group": group, "category": category})
        frame = frame.assign(correct=rng.random(asked) < accuracy / 100, answer=answers, prediction="", parsed=True)
        frames.append(frame.assign(**key._asdict()))
    return pd.concat(frames)[ITEM_COLUMNS] if frames else pd.DataFrame(columns=ITEM_COLUMNS)


def tokens(rng_seed: int = 2) -> pd.DataFrame:
    """Token scores: words the picture decides are mostly unlikely, the others mostly likely."""
    rng = np.random.default_rng(rng_seed)
    p = np.concatenate([rng.beta(1.2, 2.5, 900), rng.beta(4, 1, 1400), rng.beta(1, 12, 600)])
    return pd.DataFrame({"p_r": p, "relevant": np.arange(len(p)) < 900})


def _scores(name: str, skill: float, objective: str = "model") -> dict[str, float]:
    """Metrics of a benchmark at a skill between 0 (guessing) and 1 (perfect)."""
    yes = {"always_yes": 100.0, "always_no": 0.0}.get(objective, 50.0)
    if name == "MME":
        perception = {"always_yes": 200.0, "always_no": 200.0}.get(objective, 4 * (75 + 125 * skill))
        accuracy = 50 + 50 * skill
        more = {"perception": perception, "reasoning": 50.0 if yes != 50 else 75 + 125 * skill}
        more |= {"accuracy": accuracy, "accuracy_plus": 25 + 75 * skill, "yes_rate": yes, "unparsed": 0.0}
        return more | {"chance": 50.0}
    if name == "POPE":
        f1 = {"always_yes": 66.7, "always_no": 0.0}.get(objective, 50 + 50 * skill)
        return {"f1": f1, "accuracy": 50 + 50 * skill, "yes_rate": yes, "unparsed": 0.0, "chance": 50.0}
    chance = 0.4 if name == "MMBench" else 25.0
    unparsed = 1.0 if objective == "model" else 0.0
    return {"accuracy": chance + (100 - chance) * skill, "unparsed": unparsed, "chance": 25.0}
