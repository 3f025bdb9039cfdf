"""Stand-ins for the official benchmarks: their columns, sizes and quirks, with words and pictures of our own.

Columns are those of the table in VLMEvalKit's guide for developers and of the field lists with which these benchmarks
are republished; numbers of rows, categories and questions per picture are those of their papers.
"""

from __future__ import annotations

import base64
import csv
import io
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

ROTATION = 1_000_000
# Cells that a plain `pandas.read_csv` takes for numbers or for nothing, and words that a careless reader would break.
OPTIONS = [
    "None",
    "2",
    "1.0",
    "N/A",
    "007",
    "TRUE",
    "a red bus",
    "两只猫",
    'the "left" one',
    "line one\nline two",
    "كلب",
]
QUESTIONS = [
    "How many cats are there?",
    'What does the sign "STOP" mean?',
    "Read on:\nwhich of these is nearest?",
    "这张图里有什么？",
    "Is it\ta table,\tor not?",
]
MME = {
    **dict.fromkeys(["existence", "count", "position", "color"], 60),
    **{"posters": 294, "celebrity": 340, "scene": 400, "landmark": 400, "artwork": 400, "OCR": 40},
    "commonsense_reasoning": 140,
    **dict.fromkeys(["numerical_calculation", "text_translation", "code_reasoning"], 40),
}
# A picture has three objects that are there, asked in every split, and three per split that are not; some are shared.
POPE = {
    "adversarial,popular,random": 10,
    "adversarial,popular": 853,
    "adversarial": 637,
    "popular": 637,
    "random": 1490,
}
# Options -> questions with so many of them.
MMBENCH = {2: 100, 3: 127, 4: 937}
SEEDBENCH = {
    "Scene Understanding": 3158,
    "Instance Identity": 1831,
    "Instance Attributes": 4649,
    "Instance Location": 978,
    "Instances Counting": 2447,
    "Spatial Relation": 657,
    "Instance Interaction": 97,
    "Visual Reasoning": 331,
    "Text Understanding": 84,
}
MMSTAR = ["coarse perception", "fine-grained perception", "instance reasoning", "logical reasoning", "math"]
MMSTAR += ["science & technology"]


def pictures(number: int) -> list[str]:
    """Base64 text of so many different pictures of 8x8 points, PNG and JPEG in turn."""
    rng = np.random.default_rng(number)
    made = []
    for turn in range(number):
        buffer = io.BytesIO()
        points = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(points).save(buffer, ("PNG", "JPEG")[turn % 2])
        made.append(base64.b64encode(buffer.getvalue()).decode())
    return made


def _named(categories: dict[str, int]) -> list[str]:
    return list(chain.from_iterable([name] * number for name, number in categories.items()))


def mme() -> list[dict[str, Any]]:
    category = _named(MME)
    shown = pictures(len(category) // 2)
    return [
        {
            "index": row,
            "category": category[row],
            "image_path": f"{category[row]}/{6040 + row // 2:012d}.jpg",
            "question": f"{QUESTIONS[row // 2 % len(QUESTIONS)]} Please answer yes or no.",
            "answer": ("Yes", "No")[row % 2],
            "image": shown[row // 2],
        }
        for row in range(len(category))
    ]


def pope() -> list[dict[str, Any]]:
    asked = [("adversarial,popular,random", "Yes")] * 1500 + [(splits, "No") for splits in _named(POPE)]
    shown = pictures(500)
    return [
        {
            "index": row,
            "category": splits,
            "question": f"Is there a thing number {row // 500} in the image? Please answer yes or no.",
            "answer": answer,
            "image_path": f"COCO_val2014_{row % 500:012d}.jpg",
            "image": shown[row % 500],
        }
        for row, (splits, answer) in enumerate(asked)
    ]


def _choice(question: int, letters: str) -> dict[str, str]:
    texts = islice(cycle(OPTIONS), question, question + len(letters))
    return dict(zip(letters, texts, strict=True))


def mmbench() -> list[dict[str, Any]]:
    numbers = list(chain.from_iterable([options] * questions for options, questions in MMBENCH.items()))
    shown = pictures(len(numbers))
    firsts, rotations = [], []
    for question, number in enumerate(numbers):
        index, letters = 241 + 2 * question, "ABCD"[:number]
        texts = list(_choice(question, letters).values())
        for turn in range(number):
            row = {
                "index": index + turn * ROTATION,
                "question": QUESTIONS[question % len(QUESTIONS)],
                "hint": "Look at the 1st table:\nname | legs" if question % 3 == 0 else "",
                **dict.fromkeys("ABCD", ""),
                **dict(zip(letters, texts[turn:] + texts[:turn], strict=True)),
                "answer": letters[-turn % number],
                "category": ("object_localization", "attribute_recognition")[question % 2],
                "image": str(index) if turn else shown[question],
                "source": "W3C schools",
                "l2-category": ("finegrained_perception (instance-level)", "attribute_reasoning")[question % 2],
                "comment": "",
                "split": "dev",
            }
            (rotations if turn else firsts).append(row)
    return firsts + rotations


def mmstar() -> list[dict[str, Any]]:
    shown = pictures(1500)
    return [
        {
            "index": row,
            "question": QUESTIONS[row % len(QUESTIONS)],
            **_choice(row, "ABCD"),
            "answer": "ABCD"[row % 4],
            "category": MMSTAR[row // 250],
            "l2_category": "image scene and topic",
            "bench": ("MMBench", "MMMU", "ScienceQA")[row % 3],
            "image": shown[row],
        }
        for row in range(1500)
    ]


def seedbench() -> list[dict[str, Any]]:
    category = _named(SEEDBENCH)
    shown = pictures(1000)
    return [
        {
            "index": 101669 + row,
            "question": QUESTIONS[row % len(QUESTIONS)],
            **_choice(row, "ABCD"),
            "answer": "ABCD"[row % 4],
            "category": category[row],
            "image": shown[row % 1000],
        }
        for row in range(len(category))
    ]


BENCHMARKS = {
    "MME": mme,
    "POPE": pope,
    "MMBench_DEV_EN": mmbench,
    "MMStar": mmstar,
    "SEEDBench_IMG": seedbench,
}
ROWS = {"MME": 2374, "POPE": 5127, "MMBench_DEV_EN": 4329, "MMStar": 1500, "SEEDBench_IMG": 14232}


def write(name: str, folder: Path) -> Path:
    """Write the stand-in of an official benchmark as ``<folder>/<name>.tsv``."""
    path = folder / f"{name}.tsv"
    pd.DataFrame(BENCHMARKS[name]()).to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_MINIMAL)
    return path
