"""What models are asked and how their answers are found: against VLMEvalKit's own prompts and a plain computation."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from eval.benchmarks import GENERATORS, write_tsv
from eval.predict import degenerate, likelihood_answers, question_text
from eval.tsv import read_benchmark
from prior.corpus.questions import exchange
from prior.models.attention import unpack

ROOT = Path(__file__).resolve().parents[2]
SCORER = os.environ.get("PRIOR_VLMEVALKIT_PYTHON", str(ROOT / ".venv-vlmevalkit/bin/python"))


@pytest.mark.parametrize("name", ["MME", "MMBench"])
def test_models_are_asked_what_vlmevalkit_would_ask(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.tsv"
    write_tsv(GENERATORS[name](14, 0, 0, 48), path)
    theirs = _asked_by_vlmevalkit(path)
    frame = read_benchmark(path)
    assert len(theirs) == len(frame)
    for _, row in frame.iterrows():
        assert question_text(row) == exchange(theirs[row["index"]])


def test_three_options_gaps_and_hints_are_asked_as_vlmevalkit_would(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "index": range(3),
            "question": "How many?",
            "hint": ["Look closely.", "", "Count twice."],
            "A": "one",
            "B": ["two", "two", ""],
            "C": "three",
            "D": ["", "four", "four"],
            "answer": ["B", "D", "D"],
            "image": "never opened, " * 9,
        }
    )
    write_tsv(frame, tmp_path / "Counting.tsv")
    theirs = _asked_by_vlmevalkit(tmp_path / "Counting.tsv")
    rows = [row for _, row in read_benchmark(tmp_path / "Counting.tsv").iterrows()]
    assert [question_text(row) for row in rows] == [exchange(theirs[row["index"]]) for row in rows]
    drawn = degenerate(pd.DataFrame([rows[0]] * 200), "random", 0)
    assert drawn is not None and set(drawn.prediction) == {"A", "B", "C"}
    drawn = degenerate(pd.DataFrame([rows[2]] * 200), "random", 0)
    assert drawn is not None and set(drawn.prediction) == {"A", "C", "D"}


def _asked_by_vlmevalkit(path: Path) -> dict[str, str]:
    """The text that VLMEvalKit's own class asks, by index."""
    out = path.with_suffix(".jsonl")
    call = [SCORER, "-m", "eval.vlmevalkit", "prompts", "--benchmark", str(path), "--out", str(out)]
    subprocess.run(call, check=True, cwd=ROOT, capture_output=True)
    return {item["index"]: item["text"] for item in map(json.loads, out.read_text().splitlines())}


def test_likelihood_ranks_by_what_the_picture_adds(lvlm: Any, tokenizer: Any, records: Any) -> None:
    """Each option alone through the model's ordinary path, with the picture and without."""
    # The second option is blank, as where a question has three.
    choices = [
        {letter: records[(3 * question + k) % 24]["caption"] for k, letter in enumerate("ACD")} for question in range(6)
    ]
    images = [records[question]["image"] for question in range(6)]
    found = likelihood_answers(lvlm, tokenizer, choices, images, with_picture=True)
    blind = likelihood_answers(lvlm, tokenizer, choices, images, with_picture=False)
    unpack(lvlm.model.eval())

    @torch.no_grad()
    def total(text: str, image: bytes | None) -> float:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        prefix, extra = [], {}
        if image is not None:
            read = lvlm.read([Image.open(io.BytesIO(image)).convert("RGB")])
            prefix, extra = read[0].ids, {"pixel_values": lvlm.collate(read)}
        sequence = torch.tensor([[tokenizer.bos_token_id, *prefix, *ids]])
        logits = lvlm.model(input_ids=sequence, attention_mask=torch.ones_like(sequence), **extra).logits
        return float(logits[0, len(prefix) : -1].log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum())

    for question, texts in enumerate(choices):
        alone = np.array([total(text, None) for text in texts.values()])
        gained = np.array([total(text, images[question]) for text in texts.values()]) - alone
        assert found[question] == "ACD"[int(gained.argmax())]
        assert blind[question] == "ACD"[int(alone.argmax())]


def test_degenerate_answers_apply_where_they_can() -> None:
    yes_no = pd.DataFrame({"index": range(400), "question": "q", "answer": "Yes", "image": "x"})
    choice = yes_no.assign(**{letter: f"option {letter}" for letter in "ABC"}, answer="B")
    assert degenerate(yes_no, "always_A", 0) is None and degenerate(choice, "always_yes", 0) is None
    assert set(degenerate(yes_no, "always_no", 0).prediction) == {"No"}
    assert "image" not in degenerate(choice, "always_A", 0)
    for frame, answers in ((yes_no, {"Yes", "No"}), (choice, {"A", "B", "C"})):
        drawn = degenerate(frame, "random", 0).prediction
        assert set(drawn) == answers and drawn.value_counts().min() > 400 / len(answers) * 0.7
        assert not drawn.equals(degenerate(frame, "random", 1).prediction)
