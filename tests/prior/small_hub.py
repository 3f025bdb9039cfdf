"""Small copies of what the `paper` preset fetches: the same classes, files and tokenizer, with random weights."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.prior.mistral import write_tokenizer

LLM = {
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def write_llm(folder: Path, settings: dict[str, Any]) -> None:
    """A causal LM in bf16 with Mistral's tokenizer, as mistralai/Mistral-7B-v0.1."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = AutoConfig.for_model(**settings, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(shape).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)


def write_clip(folder: Path, settings: dict[str, Any]) -> None:
    """A whole CLIP whose weights are pickled, as openai/clip-vit-large-patch14-336."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    whole = CLIPConfig(text_config=text, vision_config=CLIPVisionConfig(**settings), projection_dim=16)
    model = CLIPModel(whole)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    size = settings["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
        folder
    )


def write_tar(path: Path, captions: list[str], rng: np.random.Generator) -> None:
    """Captioned pictures of all sizes, as img2dataset packs them."""
    with tarfile.open(path, "w") as tar:
        for number, caption in enumerate(captions):
            width, height = (int(side) for side in rng.integers(40, 150, 2))
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(picture, "JPEG")
            for suffix, content in (("jpg", picture.getvalue()), ("txt", caption.encode()), ("json", b"{}")):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
