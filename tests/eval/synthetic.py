"""Imagined results: metrics and items with known exponents and accuracies, and a whole study with a known truth."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from eval.gather.mutual import COLUMNS as MUTUAL
from eval.results import ITEM_COLUMNS, KEYS, METRIC_COLUMNS, RUN, read_paper
from eval.study import Study
from prior.config import Statistics

REPORTED = Path(__file__).resolve().parents[2] / "results/reported"

EXPONENTS = {"ntp": 0.20, "prior": 0.26}
MCQ, YES_NO = ("MMStar", "MMBench", "SEEDBench", "CaptionChoice"), ("MME", "POPE")
# α of each objective, and what it is worth: 1 is PRIOR's gain over NTP.
ALPHAS = {"ntp": 0.0, "prior": 1.0, "prior-a0.5": 0.5, "prior-a2": 2.0, "prior-a4": 4.0}
WORTH = {"ntp": 0.0, "prior": 1.0, "prior-a0.5": 0.5, "prior-a2": 0.9, "prior-a4": -0.8}
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
    yes_no = runs.benchmark.isin(YES_NO).to_numpy().repeat(asked)
    index = np.tile(np.arange(asked), len(runs))
    table = runs[keys].loc[runs.index.repeat(asked)].reset_index(drop=True)
    mme = np.where(table.benchmark == "MME", np.take(MME_CATEGORIES, index % len(MME_CATEGORIES)), "any")
    right = rng.random(len(table)) < runs.value.to_numpy().repeat(asked) / 100
    answer = np.where(yes_no, np.take(["Yes", "No"], index % 2), np.take(list("ABCD"), index % 4))
    group = np.where(yes_no, index // 2, index // 4).astype(str)
    table = table.assign(item=index.astype(str), group=group, category=mme, correct=right, answer=answer)
    return table.assign(prediction="", parsed=True)[ITEM_COLUMNS]


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


def study(
    sign: float = 1.0,
    scales: tuple[int, ...] = (25_000, 50_000, 100_000, 200_000, 400_000),
    seeds: int = 6,
    archs: tuple[str, ...] = ("hlvlm", "ulvlm"),
    noise: float = 0.01,
    rng_seed: int = 0,
) -> Study:
    """A study in which all that the paper claims is so (`sign` 1), none of it is (0), or its opposite is (−1).

    Ablations of α stand at the largest scale, where CaptionChoice is asked of checkpoints on the way, too.
    """
    rng = np.random.default_rng(rng_seed)
    rows = [_run_metrics(arch, *run, sign, max(scales), noise, rng) for arch in archs for run in _runs(scales, seeds)]
    table = pd.concat([*rows, _baselines(seeds)], ignore_index=True)[METRIC_COLUMNS]
    words, scored = _words(sign, rng)
    stored = {
        "words": words,
        "tokens": scored,
        "training": _training(table, sign, rng),
        "mutual": _mutual(table, sign, rng),
    }
    answers = items(table, asked=20)
    return Study("imagined", Statistics(), table, answers, read_paper(REPORTED), alphas=ALPHAS, stored=stored)


def _runs(scales: tuple[int, ...], seeds: int) -> list[tuple[str, int, int]]:
    last = max(scales)
    return [
        (objective, scale, seed)
        for objective, scale, seed in product(ALPHAS, scales, range(seeds))
        if objective in EXPONENTS or scale == last
    ]


def _run_metrics(
    arch: str, objective: str, scale: int, seed: int, sign: float, last: int, noise: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Errors fall as x^−b, b and the level being better with `WORTH`; the worse arm is noisier, too."""
    gain, steps = sign * WORTH[objective], scale // 2000
    restless = noise * (1 + 3 * (gain < max(sign, 0) or (sign < 0 and objective != "ntp")))

    def jitter(size: float = noise) -> float:
        return float(np.exp(size * rng.standard_normal()))

    def key(stage: str, step: int, picture: str, benchmark: str) -> dict[str, object]:
        run = dict(zip(RUN, (arch, objective, scale, seed), strict=True))
        return {**run, "stage": stage, "step": step, "picture": picture, "benchmark": benchmark}

    left = (1 - 0.04 * gain) * (scale / 25_000) ** -(0.15 + 0.05 * gain)
    rows: list[dict[str, object]] = []
    for picture, benchmark in product(("with", "without"), (*YES_NO, *MCQ)):
        choice = benchmark == "CaptionChoice"
        ends = 4 if choice and scale == last and objective in EXPONENTS and picture == "with" else 1
        for point in range(1, ends + 1):
            missed = (
                min(0.7 * left * jitter(restless if ends == 1 else 2 * restless), 1.0) if picture == "with" else 1.0
            )
            at = key(*(("pretrain", steps * point // ends) if choice else ("tuned", 300)), picture, benchmark)
            for metric, value in _scores(benchmark, 1 - missed).items():
                unit = "points" if metric in ("perception", "reasoning") else "percent"
                rows.append(at | {"metric": metric, "value": value, "n_items": 200, "unit": unit})
    for metric, level in {"loss": 2.0, "loss_relevant": 3.0, "loss_other": 1.0}.items():
        for picture in ("with", "without"):
            value = level * left * (1.3 if picture == "without" else 1) * jitter()
            at = key("pretrain", steps, picture, "heldout")
            rows.append(at | {"metric": metric, "value": value, "n_items": 9000, "unit": "nats/token"})
    for metric, level in {"chair_s": 30.0, "chair_i": 20.0, "recall": 60.0, "words": 12.0}.items():
        for ending, picture in product(("", "_equal"), ("with", "without")):
            value = level * (1 - 0.1 * gain) * jitter()
            at = key("pretrain", steps, picture, "CHAIR")
            rows.append(at | {"metric": metric + ending, "value": value, "n_items": 300, "unit": "percent"})
    return pd.DataFrame(rows)


def _baselines(seeds: int) -> pd.DataFrame:
    rows = []
    for benchmark in (*YES_NO, *MCQ):
        constant = ("always_yes", "always_no") if benchmark in YES_NO else ("always_A",)
        for objective, copies in (("random", seeds), *((entry, 1) for entry in constant)):
            for seed, (metric, value) in product(range(copies), _scores(benchmark, 0.0, objective).items()):
                at = dict(zip(KEYS, ("baseline", objective, 0, seed, "none", 0, "without", benchmark), strict=True))
                unit = "points" if metric in ("perception", "reasoning") else "percent"
                rows.append(at | {"metric": metric, "value": value, "n_items": 200, "unit": unit})
    return pd.DataFrame(rows)


def _trained(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table.scale_tokens > 0, RUN].drop_duplicates(ignore_index=True)


def _training(table: pd.DataFrame, sign: float, rng: np.random.Generator) -> pd.DataFrame:
    """Ten bins of ten steps: the better arm's loss jitters less, and its gradients spike less often."""
    rows = _trained(table).merge(pd.DataFrame({"bin": range(10)}), how="cross")
    better = sign * rows.objective.map(WORTH).to_numpy()
    rows = rows.assign(first_step=10 * rows.bin + 1, last_step=10 * rows.bin + 10, steps=10, judged=10)
    rows = rows.assign(tokens=1000 * (rows.bin + 1), seconds=rows.bin + 1.0, step_seconds=0.1)
    for name in ("loss", "loss_relevant", "loss_other"):
        rows[name] = 2.0
        rows[f"{name}_variance"] = np.exp(-better + 0.3 * rng.standard_normal(len(rows)))
    rows = rows.assign(grad_norm=1.0, grad_norm_mean=1.1, grad_norm_max=2.0, grad_norm_variance=0.1)
    return rows.assign(spikes=rng.binomial(10, 0.2 * np.exp(-better)))


def _mutual(table: pd.DataFrame, sign: float, rng: np.random.Generator) -> pd.DataFrame:
    """Correlations of whole runs alone, 0.3 where the paper claims one."""
    runs = _trained(table)
    runs["judge"] = (runs.seed + 1) % (runs.seed.max() + 1)
    rows = runs.merge(pd.DataFrame({"unit": ["token", "word"]}), how="cross")
    rows = rows.assign(group="all", by="all", bin=-1, n=1000, w=0.5, weight=1.0, mi=1.0, nll=2.0, gain=0.1)
    for name in ("rho_w", "rho_gain"):
        rows[name] = 0.3 * sign + 0.05 * rng.standard_normal(len(rows))
    ntp = rows.objective == "ntp"
    return rows.assign(gain=rows.gain.mask(ntp), rho_gain=rows.rho_gain.mask(ntp))[MUTUAL]


def _words(sign: float, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Words of one token, ten in a caption, three of which the picture decides; these are the less likely."""
    caption = np.repeat(np.arange(60, dtype=np.int32), 10)
    relevant = np.tile(np.arange(10) < 3, 60)
    p_r = 1 / (1 + np.exp(sign * np.where(relevant, 1.0, -1.0) + rng.standard_normal(600)))
    kinds = pd.Categorical(np.where(relevant, "visual", "function"), ["visual", "function"])
    rows = pd.DataFrame(
        {"caption": caption, "p_r": p_r, "relevant": pd.array(relevant, "boolean"), "word_class": kinds}
    )
    words = rows.assign(word=pd.Categorical(np.where(relevant, "red", "the")), weight=1 - p_r)
    return words[["caption", "word", "p_r", "weight", "relevant", "word_class"]], rows
