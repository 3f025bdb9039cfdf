"""What models are asked and how their answers are found: against VLMEvalKit's own prompts and a plain computation."""

from __future__ import annotations

import base64
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

from eval.benchmarks import maker, write_tsv
from eval.degenerate import degenerate
from eval.predict import Model, Questions, choose, open_image
from eval.tsv import options
from prior.corpus.questions import exchange, prompt
from prior.models.attention import unpack

ROOT = Path(__file__).resolve().parents[2]
SCORER = os.environ.get("PRIOR_VLMEVALKIT_PYTHON", str(ROOT / ".venv-vlmevalkit/bin/python"))


def export(path: Path, answer: str = "generate") -> Path:
    """The prompts that a job in VLMEvalKit's environment writes beside a benchmark."""
    out = path.with_suffix(".jsonl")
    call = [SCORER, "-m", "eval.vlmevalkit", "prompts", "--benchmark", str(path), "--answer", answer]
    subprocess.run([*call, "--cache", str(path.parent / "kept"), "--out", str(out)], check=True, cwd=ROOT)
    return out


@pytest.mark.parametrize("name", ["MME", "MMBench"])
def test_models_are_asked_what_they_were_tuned_on(name: str, tmp_path: Path) -> None:
    """Tuning questions are worded here, where VLMEvalKit cannot be imported; benchmarks are worded by VLMEvalKit."""
    path = tmp_path / f"{name}.tsv"
    write_tsv(maker(name).rows(14, 0, 0, 48), path)
    questions = Questions.read(path, export(path), "generate")
    rows = [row for _, row in questions.frame.iterrows()]
    assert questions.texts == [exchange(prompt(row["question"], options(row))) for row in rows]


def test_prompts_are_cached_by_the_words_of_a_benchmark(tmp_path: Path) -> None:
    frame = pd.DataFrame(maker("POPE").rows(6, 0, 0, 48))
    frame["question"] += " one\u2028more\x85line\u2029"
    path = tmp_path / "POPE.tsv"
    write_tsv(frame, path)
    assert Questions.read(path, export(path), "generate").texts == [exchange(text) for text in frame["question"]]
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text(kept.read_text().replace("Please", "Kindly"))
    assert "Kindly" in export(path).read_text()
    write_tsv(frame.assign(image=frame["image"].iloc[0]), path)
    assert "Kindly" in export(path).read_text()
    write_tsv(frame.assign(question=frame["question"] + "!"), path)
    assert "Kindly" not in export(path).read_text()


def test_a_caption_is_asked_for_by_nothing_and_a_choice_needs_options(tmp_path: Path) -> None:
    path = tmp_path / "POPE.tsv"
    write_tsv(maker("POPE").rows(6, 0, 0, 48), path)
    with pytest.raises(subprocess.CalledProcessError, match="exit status 2"):
        export(path, "likelihood")
    with pytest.raises(subprocess.CalledProcessError, match="exit status 2"):
        export(path, "caption")
    assert not path.with_suffix(".jsonl").exists()
    path = tmp_path / "CHAIR.tsv"
    write_tsv(maker("CHAIR").rows(6, 0, 0, 48), path)
    assert Questions.read(path, export(path, "caption"), "caption").texts == [""] * 6
    with pytest.raises(subprocess.CalledProcessError, match="exit status 2"):
        export(path, "generate")


def test_likelihood_ranks_by_what_the_picture_adds(lvlm: Any, tokenizer: Any, records: Any) -> None:
    """Each option alone through the model's ordinary path, with the picture and without."""
    # The second option is blank, as where a question has three.
    choices = [
        {letter: records[(3 * question + k) % 24]["caption"] for k, letter in enumerate("ACD")} for question in range(6)
    ]
    images = [records[question]["image"] for question in range(6)]
    found = choose(Model(lvlm, tokenizer), choices, images, with_picture=True)
    blind = choose(Model(lvlm, tokenizer), choices, images, with_picture=False)
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
    choice = yes_no.assign(**{letter: f"option {letter}" for letter in "ACD"}, B="", answer="C")
    for frame, possible, constant in (
        (yes_no, {"Yes", "No"}, {"always_yes": "Yes", "always_no": "No"}),
        (choice, {"A", "C", "D"}, {"always_A": "A"}),
    ):
        given = {(kind, seed): answers for kind, seed, answers in degenerate(frame, 2)}
        assert set(given) == {("random", 0), ("random", 1), *((kind, 0) for kind in constant)}
        for kind, answer in constant.items():
            assert given[kind, 0] == [answer] * 400
        drawn = pd.Series(given["random", 0])
        assert set(drawn) == possible and drawn.value_counts().min() > 400 / len(possible) * 0.7
        assert given["random", 0] != given["random", 1]
    assert list(degenerate(choice, 0)) == []


def test_a_picture_with_a_jpegs_name_is_the_one_that_vlmevalkit_shows(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    names = ["a.jpg", "b/c.JPEG", "d.png", ""]
    (tmp_path / "pictures.json").write_text(json.dumps([encoded, [name for name in names if name]]))
    script = (
        "import json\nfrom eval.vlmevalkit.torchvision_shim import import_torchvision\nimport_torchvision()\n"
        "from vlmeval.smp import decode_base64_to_image_file\n"
        "encoded, names = json.load(open('pictures.json'))\n"
        "for name in names: decode_base64_to_image_file(encoded, 'shown/' + name)\n"
    )
    subprocess.run([SCORER, "-c", script], check=True, cwd=tmp_path)
    for name in names:
        theirs = Image.open(tmp_path / "shown" / name).convert("RGB") if name else Image.fromarray(noise)
        assert np.array_equal(np.asarray(open_image(encoded, name)), np.asarray(theirs)), name
