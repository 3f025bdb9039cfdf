"""Small models and captions that several tests share, made once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from tests.end_to_end.running import snakemake

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "star",
    "on",
    "the",
    "left",
    "right",
    "of",
    "small",
    "large",
    "and",
    "sold",
    "by",
    "for",
    "12",
    "99",
    "photo",
]


def caption(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(3, 15)))


def picture(rng: np.random.Generator, width: int = 48, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from prior.backbones import train_tokenizer
    from prior.config import ScratchTokenizer

    rng = np.random.default_rng(0)
    return train_tokenizer([caption(rng) for _ in range(200)], ScratchTokenizer(vocab_size=330))


@pytest.fixture(scope="session")
def records() -> Any:
    """24 captioned pictures; the colour words are image-related."""
    from datasets import Dataset, Features, List, Value

    rng = np.random.default_rng(1)
    rows: dict[str, list[Any]] = {"id": [], "image": [], "caption": [], "relevant": []}
    for number in range(24):
        text = caption(rng)
        start = 0
        spans = []
        for word in text.split():
            start = text.index(word, start)
            if word in ("red", "blue", "green"):
                spans.append([start, start + len(word)])
            start += len(word)
        rows["id"].append(f"c{number}")
        rows["image"].append(picture(rng))
        rows["caption"].append(text)
        rows["relevant"].append(spans)
    columns = {"id": Value("string"), "image": Value("binary"), "caption": Value("string")}
    return Dataset.from_dict(rows, features=Features({**columns, "relevant": List(List(Value("int32")))}))


@pytest.fixture(scope="session")
def llm(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from prior.backbones import new_llm
    from prior.config import ScratchLLM

    folder = tmp_path_factory.mktemp("llm")
    model = new_llm(ScratchLLM(hidden_size=32, layers=2, heads=2, intermediate_size=48), tokenizer)
    # Random weights at their usual size give almost uniform predictions; larger ones make a leak visible.
    for parameter in model.parameters():
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=48,
            patch_size=16,
        )
    ).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(params=["hlvlm", "ulvlm"])
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lvlm(arch: str, tokenizer: Any, llm: Path, vision: Path) -> Any:
    from prior import models
    from prior.config import Architectures

    return models.build(arch, getattr(Architectures(), arch), tokenizer, llm, vision, seed=0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of the preset `tiny`, made once: its folder, and the preset in it."""
    folder = tmp_path_factory.mktemp("tiny")
    preset = folder / "mine.yaml"
    preset.write_text("extends: tiny\n")
    snakemake(folder, str(preset))
    return folder, str(preset)
