"""PRIOR in other training code: scores against transformers' own loss, the page's examples as printed, auto classes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import prior
from prior.errors import UserError
from tests.conftest import caption, picture

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/library.md").read_text(encoding="utf-8"), re.M | re.S)


def python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def causal_lm(kind: str, tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = len(tokenizer)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    else:
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=64, **shape))
    # Small random weights would give the same probability to everything.
    for parameter in model.parameters():
        parameter.data.mul_(5.0 if parameter.ndim > 1 else 1.0)
    return model


@pytest.fixture
def captions() -> list[str]:
    rng = np.random.default_rng(3)
    return [*(caption(rng) for _ in range(20)), "a", "a red </s> circle"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 70, 10_000])
def test_scores_are_transformers_own_losses_of_each_caption_alone(
    kind: str, batch_tokens: int, tokenizer: Any, captions: list[str]
) -> None:
    model = causal_lm(kind, tokenizer).train()
    seen: list[tuple[int, int]] = []
    scores = prior.score_captions(
        model, tokenizer, captions, batch_tokens=batch_tokens, progress=lambda *done: seen.append(done)
    )
    assert model.training and seen[-1] == (len(captions), len(captions))
    model.eval()
    for number, text in enumerate(captions):
        tokens = [*tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids]
        tokens.append(tokenizer.eos_token_id)
        assert scores.input_ids[number].tolist() == tokens and scores.ids[number] == str(number)
        ids = torch.tensor([[tokenizer.bos_token_id, *tokens]])
        for place in range(len(tokens)):
            # One label at a time: its loss is minus the log-probability of that token.
            labels = torch.full_like(ids, -100)
            labels[0, place + 1] = tokens[place]
            loss = model(ids, labels=labels).loss.item()
            assert scores.logprobs[number][place] == pytest.approx(-loss, abs=2e-4)


def test_without_a_beginning_of_sequence_captions_follow_the_end_of_one(tokenizer: Any, captions: list[str]) -> None:
    from copy import deepcopy

    model, bare = causal_lm("gpt2", tokenizer).eval(), deepcopy(tokenizer)
    bare.bos_token = None
    scores = prior.score_captions(model, bare, captions)
    ids = torch.tensor([[tokenizer.eos_token_id, *scores.input_ids[4].tolist()]])
    assert -scores.logprobs[4].mean() == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-4)


def test_scores_are_computed_in_the_models_precision_and_kept_in_float32(tokenizer: Any, captions: list[str]) -> None:
    model = causal_lm("llama", tokenizer)
    exact = prior.score_captions(model, tokenizer, captions)
    rounded = prior.score_captions(model.to(torch.bfloat16), tokenizer, captions)
    assert {logprob.dtype for logprob in rounded.logprobs} == {np.dtype(np.float32)}
    difference = np.abs(np.concatenate(rounded.logprobs) - np.concatenate(exact.logprobs))
    assert 0 < difference.mean() < 0.1


def test_scores_are_written_in_the_projects_format(tokenizer: Any, captions: list[str], tmp_path: Path) -> None:
    import pandas as pd

    from prior.scores import SCHEMA

    names = [f"caption{number}" for number in range(len(captions))]
    scores = prior.score_captions(causal_lm("llama", tokenizer), tokenizer, captions, ids=names)
    path = tmp_path / "scores.arrow"
    scores.save(path)
    again = prior.CaptionScores.load(path)
    assert again.ids == names and len(again) == len(captions)
    for name in ("input_ids", "logprobs"):
        for one, other in zip(getattr(scores, name), getattr(again, name), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert list(pd.read_feather(path).columns) == SCHEMA.names
    (tmp_path / "other.arrow").write_text("no scores")
    for file in ("other.arrow", "missing.arrow"):
        with pytest.raises(UserError, match=f"{file}: this is no file of caption scores"):
            prior.CaptionScores.load(tmp_path / file)


def test_weights_are_those_of_the_papers_worked_example_in_each_caption_of_its_own() -> None:
    losses = np.array([0.68, 0.47, 0.71, 0.47, 0.65, 0.08])
    p_r = np.array([0.01, 0.11, 0.47, 0.05, 0.48, 0.88], np.float32)
    other = np.array([0.5, 0.2, 0.9], np.float32)
    tokens = [np.zeros(3, np.int32), np.zeros(6, np.int32)]
    scores = prior.CaptionScores(["a", "b"], tokens, [np.log(other), np.log(p_r)])
    first, second = scores.weights()
    np.testing.assert_allclose(losses * second, [1.01, 0.63, 0.56, 0.66, 0.51, 0.01], atol=0.01)
    np.testing.assert_allclose(first, 3 * (1 - other) / (1 - other).sum(), rtol=1e-5)
    assert [part.tolist() for part in scores.weights(alpha=0)] == [[1.0] * 3, [1.0] * 6]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_padded_loss_is_transformers_own_and_shifts_weights_with_labels(kind: str, tokenizer: Any) -> None:
    model = causal_lm(kind, tokenizer).eval()
    ids = torch.randint(8, len(tokenizer), (3, 9))
    labels = ids.clone()
    labels[:, :2] = -100
    labels[1, 6:] = -100
    output = model(ids, labels=labels)
    even = prior.weighted_causal_lm_loss(output.logits, labels, torch.ones(3, 9))
    torch.testing.assert_close(even, output.loss)
    # A weight on one label alone gives the loss of that label.
    weights = torch.zeros(3, 9)
    weights[1, 5], weights[1, 7] = 2.0, 100.0
    one = prior.weighted_causal_lm_loss(output.logits, labels, weights, num_items_in_batch=20)
    expected = -2.0 * output.logits[1, 4].log_softmax(-1)[ids[1, 5]] / 20
    torch.testing.assert_close(one, expected)


def test_what_cannot_be_scored_is_refused_in_one_line(tokenizer: Any) -> None:
    from copy import deepcopy

    model = causal_lm("gpt2", tokenizer)
    with pytest.raises(UserError, match="got 0 captions"):
        prior.score_captions(model, tokenizer, [])
    with pytest.raises(UserError, match="got 2 captions and 1 ids"):
        prior.score_captions(model, tokenizer, ["a", "b"], ids=["a"])
    with pytest.raises(UserError, match="the model reads 64"):
        prior.score_captions(model, tokenizer, ["the " * 80])
    endless = deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        prior.score_captions(model, endless, ["a"])
    model.resize_token_embeddings(10)
    with pytest.raises(UserError, match="the model knows 10 tokens"):
        prior.score_captions(model, tokenizer, ["a red circle"])


@pytest.fixture(scope="module")
def stand_ins(tokenizer: Any, llm: Path, vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: captions.json, images, and the folders reference, lvlm and ulvlm."""
    from transformers import AutoModelForCausalLM

    from prior import models
    from prior.config import Architectures

    folder = tmp_path_factory.mktemp("library")
    AutoModelForCausalLM.from_pretrained(llm).save_pretrained(folder / "reference")
    tokenizer.save_pretrained(folder / "reference")
    for arch, name in (("hlvlm", "lvlm"), ("ulvlm", "ulvlm")):
        models.build(arch, getattr(Architectures(), arch), tokenizer, llm, vision, seed=0).save(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = np.random.default_rng(5)
    (folder / "images").mkdir()
    rows = []
    for number in range(6):
        (folder / f"images/{number}.png").write_bytes(picture(rng))
        turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": caption(rng)}]
        rows.append({"id": f"row{number}", "image": f"{number}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def papers_loss(stand_ins: Path) -> float:
    """The paper's loss over all rows, caption by caption from its definition, divided by their tokens."""
    from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

    reference = AutoModelForCausalLM.from_pretrained(stand_ins / "reference")
    model = LlavaForConditionalGeneration.from_pretrained(stand_ins / "lvlm")
    processor = AutoProcessor.from_pretrained(stand_ins / "lvlm")
    total, tokens = 0.0, 0
    for row in json.loads((stand_ins / "captions.json").read_text()):
        text = row["conversations"][1]["value"] + "</s>"
        inputs = processor(
            text=f"<s><image>{text}", images=Image.open(stand_ins / "images" / row["image"]), return_tensors="pt"
        )
        caption = processor.tokenizer(f"<s>{text}", return_tensors="pt").input_ids
        target, k = caption[0, 1:], caption.shape[1] - 1
        with torch.no_grad():
            p_r = reference(caption).logits[0, :-1].softmax(-1)[range(k), target]
            nll = -model(**inputs).logits[0, -k - 1 : -1].log_softmax(-1)[range(k), target]
        total += float((k * (1 - p_r) / (1 - p_r).sum() * nll).sum())
        tokens += k
    return total / tokens


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run_as_printed_and_minimise_the_right_losses(
    number: int, stand_ins: Path, papers_loss: float
) -> None:
    output = python(EXAMPLES[number], cwd=stand_ins)
    assert ("transformers" in output) == ("score_captions(" in EXAMPLES[number])
    for ordinary, alpha_zero in re.findall(r"transformers (\S+) alpha = 0 (\S+)", output):
        assert float(alpha_zero) == pytest.approx(float(ordinary), rel=1e-5)
    trained = re.findall(r"'train_loss': '(\S+)'", output)
    assert len(trained) == ("Trainer(" in EXAMPLES[number])
    for loss in trained:
        # One step over all rows; Trainer prints four digits.
        assert float(loss) == pytest.approx(papers_loss, rel=1e-3)
        assert float(loss) != pytest.approx(float(ordinary), rel=1e-3)


def test_a_pipeline_of_transformers_answers_as_the_project_does(stand_ins: Path) -> None:
    from transformers import pipeline

    from eval.predict import load_model, reply

    model = load_model(stand_ins / "lvlm")
    answer = pipeline("image-text-to-text", model=str(stand_ins / "lvlm"))
    for number, question in enumerate(["what red star", "a circle\nAnswer:", ""]):
        image = Image.open(stand_ins / f"images/{number}.png").resize((70, 53))
        content = [{"type": "image", "image": image}] + [{"type": "text", "text": question}] * bool(question)
        (given,) = answer(text=[{"role": "user", "content": content}], max_new_tokens=12, return_full_text=False)
        (expected,) = reply(model, model.encode([question]), model.architecture.read([image]), 12)
        assert given["generated_text"].strip() == expected
        assert expected


def test_importing_prior_loads_neither_torch_nor_transformers() -> None:
    assert python("import sys, prior; print({'torch', 'transformers'} & {*sys.modules})") == "set()\n"
    assert all(hasattr(prior, name) for name in prior.__all__)
    with pytest.raises(AttributeError, match="module 'prior' has no attribute 'prior_weight'"):
        _ = prior.prior_weight  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "order",
    [
        "import prior; from transformers import AutoModelForImageTextToText, AutoConfig",
        "from transformers import AutoModelForImageTextToText, AutoConfig; import prior",
        "import prior; from transformers import Trainer, AutoModelForImageTextToText, AutoConfig",
    ],
)
def test_the_auto_classes_know_the_u_lvlm_whichever_is_imported_first(order: str, stand_ins: Path) -> None:
    load = "for auto in (AutoConfig, AutoModelForImageTextToText): print(type(auto.from_pretrained('ulvlm')).__name__)"
    assert python(f"{order}\n{load}", cwd=stand_ins) == "ULVLMConfig\nULVLMForConditionalGeneration\n"


def test_a_tokenizer_can_be_had_without_loading_the_u_lvlm(stand_ins: Path) -> None:
    code = "import sys, prior\nfrom transformers import AutoTokenizer\nAutoTokenizer.from_pretrained('reference')\n"
    assert python(code + "print('prior.models.ulvlm' in sys.modules)", cwd=stand_ins) == "False\n"
