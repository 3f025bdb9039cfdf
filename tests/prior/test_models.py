"""The two architectures: shapes, saving, and the same answer in a padded batch as alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.predict import Model, reply
from prior import models
from prior.models.ulvlm import IMAGENET_MEAN, IMAGENET_STD, ULVLM, ULVLMConfig, patched_size, patches


def images(records: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(record["image"])).convert("RGB") for record in records]


def test_a_saved_model_answers_as_before(arch: str, lvlm: Any, tokenizer: Any, records: Any, tmp_path: Path) -> None:
    prompts = ["a red", "on the left of", "photo"] * 3
    shown = lvlm.read(images(records)[:9])
    before = reply(Model(lvlm, tokenizer), Model(lvlm, tokenizer).encode(prompts), shown, 6)
    lvlm.save(tmp_path)
    assert not list(tmp_path.glob("*.bin")), "safetensors only"
    again = models.load(tmp_path)
    assert reply(Model(again, tokenizer), Model(lvlm, tokenizer).encode(prompts), shown, 6) == before
    for name, parameter in lvlm.model.state_dict().items():
        assert torch.equal(parameter, again.model.state_dict()[name]), name


@pytest.mark.parametrize("picture", [True, False])
def test_batched_answers_equal_answers_one_by_one(lvlm: Any, tokenizer: Any, records: Any, picture: bool) -> None:
    prompts = [" ".join(["a red circle on the left"] * (1 + number % 4))[: 5 + 7 * number] for number in range(9)]
    shown = lvlm.read(images(records)[:9]) if picture else []
    model = Model(lvlm, tokenizer)
    batched = reply(model, model.encode(prompts), shown, 8)
    alone = [
        reply(model, model.encode([prompt]), shown[index : index + 1], 8)[0] for index, prompt in enumerate(prompts)
    ]
    assert batched == alone
    assert len(set(batched)) > 1


def test_the_hlvlm_is_a_stock_llava(llm: Path, vision: Path, tokenizer: Any, records: Any, tmp_path: Path) -> None:
    """transformers' own classes load a checkpoint and compute the same logits as the parts it was built from."""
    from transformers import AutoModelForCausalLM, CLIPVisionModel, LlavaForConditionalGeneration

    from prior.config import HLVLM

    built = models.build("hlvlm", HLVLM(), tokenizer, llm, vision, seed=0)
    built.save(tmp_path)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    picture = built.read(images(records)[:1])[0]
    ids = torch.tensor([[tokenizer.bos_token_id, *picture.ids, 300, 301]])
    with torch.no_grad():
        ours = stock(input_ids=ids, pixel_values=picture.features[None]).logits
        tower = CLIPVisionModel.from_pretrained(vision).eval()
        features = tower(picture.features[None], output_hidden_states=True).hidden_states[-2][:, 1:]
        projected = stock.model.multi_modal_projector(features)
        language = AutoModelForCausalLM.from_pretrained(llm).eval()
        embedded = language.get_input_embeddings()(ids)
        embedded[0, 1 : 1 + len(picture.ids)] = projected[0]
        expected = language(inputs_embeds=embedded).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_patches_are_solos(tokenizer: Any, llm: Path) -> None:
    """Row by row, flattened (channel, height, width), normalised by ImageNet's statistics; row separators."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    cut, rows, columns = patches(Image.fromarray(pixels), 16, 48)
    assert (rows, columns) == (2, 3)
    expected = (pixels[16:32, 32:48] / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(cut[5].reshape(3, 16, 16), expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)

    from prior.config import ULVLM as Settings

    model = models.build("ulvlm", Settings(), tokenizer, llm, None, seed=0)
    picture = model.read([Image.fromarray(pixels)])[0]
    row = ["<vpatch>"] * 3
    assert tokenizer.convert_ids_to_tokens(picture.ids) == ["<vision>", *row, "<vrow_sep>", *row, "</vision>"]
    assert len(picture.ids) == model.prefix_length((48, 32))
    assert isinstance(model, ULVLM) and isinstance(model.model.config, ULVLMConfig)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_patched_size_follows_solos_rule(width: int, height: int) -> None:
    size = patched_size(width, height, 32, 1024)
    assert all(side % 32 == 0 and 32 <= side <= 1024 for side in size)
    assert (size[0] >= size[1]) == (width >= height) or size[0] == size[1]
    assert max(size) == min(-(-max(width, height) // 32) * 32, 1024)
    # The aspect ratio changes by less than a patch.
    assert min(size) - 32 < min(width, height) * max(size) / max(width, height) <= max(min(size), 32)
