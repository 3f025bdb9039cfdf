"""H-LVLM: a vision tower joined to an LLM by a two-layer GELU MLP (LLaVA-1.5, `haotian-liu/LLaVA`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from prior import config
from prior.models import Picture, freeze

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"


@dataclass
class HLVLM:
    """`LlavaForConditionalGeneration` with the image processor of its vision tower."""

    model: LlavaForConditionalGeneration
    processor: BaseImageProcessor

    @classmethod
    def build(cls, settings: config.HLVLM, tokenizer: PreTrainedTokenizerFast, llm: Path, vision: Path) -> HLVLM:
        """Join a vision tower and an LLM by a freshly initialised projector."""
        language = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
        tower = CLIPVisionModel.from_pretrained(vision, dtype=torch.float32)
        patches = (tower.config.image_size // tower.config.patch_size) ** 2
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                text_config=language.config,
                vision_config=tower.config,
                image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
                image_seq_length=patches,
                projector_hidden_act="gelu",
                vision_feature_layer=settings.vision_feature_layer,
                vision_feature_select_strategy="default",
                initializer_range=getattr(language.config, "initializer_range", 0.02),
                tie_word_embeddings=language.config.tie_word_embeddings,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        inner = model.model
        inner.vision_tower.load_state_dict(tower.state_dict())
        inner.language_model.load_state_dict(language.model.state_dict())
        model.lm_head.load_state_dict(language.lm_head.state_dict())
        model.tie_weights()
        lvlm = cls(model, AutoImageProcessor.from_pretrained(vision, backend="pil"))
        lvlm.set_trainable(settings.trainable)
        return lvlm

    @classmethod
    def load(cls, folder: Path) -> HLVLM:
        return cls(
            LlavaForConditionalGeneration.from_pretrained(folder),
            AutoImageProcessor.from_pretrained(folder, backend="pil"),
        )

    @cached_property
    def reading(self) -> str:
        return f"hlvlm {self.model.config.image_seq_length} {self.processor.to_json_string()}"

    def read(self, images: list[Image]) -> list[Picture]:
        """One ``<image>`` token per patch; features of shape (3, height, width)."""
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        ids = [self.model.config.image_token_id] * self.model.config.image_seq_length
        return [Picture(ids, features) for features in pixels]

    def prefix_length(self, size: tuple[int, int]) -> int:
        return self.model.config.image_seq_length

    def collate(self, pictures: list[Picture]) -> torch.Tensor:
        return torch.stack([picture.features for picture in pictures])

    def set_trainable(self, trainable: tuple[str, ...]) -> None:
        inner = self.model.model
        llm = [inner.language_model, self.model.lm_head]
        freeze(
            self.model,
            {"projector": [inner.multi_modal_projector], "llm": llm, "vision": [inner.vision_tower]},
            trainable,
        )

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
