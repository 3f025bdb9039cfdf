"""What answers without a model look like: random answers, always yes, always no, always A."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from eval.tsv import options

CONSTANT = {"always_yes": "Yes", "always_no": "No", "always_A": "A"}


def degenerate(frame: pd.DataFrame, seeds: int) -> Iterator[tuple[str, int, list[str]]]:
    """Yield (kind, seed, one answer per row) of every kind that applies to a benchmark; nothing for no `seeds`.

    ``random`` answers are uniform over a row's options, or yes and no, and there are `seeds` of them; constant ones are
    yes or no where there are no options, else A.
    """
    if not seeds:
        return
    choices = [options(row) for row in frame.drop(columns="image", errors="ignore").to_dict("records")]
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 37])
        yield "random", seed, [tuple(texts or ("Yes", "No"))[int(rng.integers(len(texts) or 2))] for texts in choices]
    for kind, answer in CONSTANT.items():
        if (kind == "always_A") == any(choices):
            yield kind, 0, [answer] * len(frame)
