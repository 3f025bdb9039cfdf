"""H-LVLM: a vision tower joined to an LLM by a two-layer GELU MLP (LLaVA-1.5, `haotian-liu/LLaVA`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)

from prior import config, processes
from prior.files import write_json, write_text
from prior.models import Picture, freeze
from prior.models.weights import adopt, export, held_here, hollow, load_llm, release

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"
# Nothing around what is said: a conversation reads as documents did in training, the picture first.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {{- '<image>' if part['type'] == 'image' else part['text'] }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
"""


def patch_count(tower: CLIPVisionConfig) -> int:
    """Patches of a picture in a vision tower, which become as many positions of the LLM."""
    return (tower.image_size // tower.patch_size) ** 2


def llava_config(
    settings: config.HLVLM, text: PreTrainedConfig, tower: CLIPVisionConfig, **token_ids: Any
) -> LlavaConfig:
    """The configuration of an LLM joined to a vision tower; without `token_ids` where only sizes are asked for."""
    return LlavaConfig(
        text_config=text,
        vision_config=tower,
        image_seq_length=patch_count(tower),
        projector_hidden_act="gelu",
        vision_feature_layer=settings.vision_feature_layer,
        vision_feature_select_strategy="default",
        initializer_range=getattr(text, "initializer_range", 0.02),
        tie_word_embeddings=text.tie_word_embeddings,
        **token_ids,
    )


@dataclass
class HLVLM:
    """`LlavaForConditionalGeneration` with the image processor of its vision tower."""

    model: LlavaForConditionalGeneration
    processor: BaseImageProcessor

    @classmethod
    def build(
        cls,
        settings: config.HLVLM,
        tokenizer: PreTrainedTokenizerFast,
        llm: Path,
        vision: Path,
        *,
        fsdp: bool = False,
    ) -> HLVLM:
        """Join a vision tower and an LLM by a freshly initialised projector."""
        text = AutoConfig.from_pretrained(llm, dtype=torch.float32)
        tower = CLIPVisionConfig.from_pretrained(vision, dtype=torch.float32)
        joined = llava_config(
            settings,
            text,
            tower,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        if held_here(fsdp):
            model = LlavaForConditionalGeneration(joined)
            inner = model.model
            # Before the real weights come the random ones go: no time sees both.
            for part in (inner.vision_tower, inner.language_model, model.lm_head):
                release(part)
            adopt(inner.vision_tower, CLIPVisionModel.from_pretrained(vision, dtype=torch.float32))
            language = load_llm(llm)
            adopt(inner.language_model, language.model)
            adopt(model.lm_head, language.lm_head)
        else:
            model = hollow(lambda: LlavaForConditionalGeneration(joined))
        lvlm = cls(model, AutoImageProcessor.from_pretrained(vision, backend="pil"))
        lvlm.set_trainable(settings.trainable)
        return lvlm

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, *, fsdp: bool = False) -> HLVLM:
        if held_here(fsdp):
            model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        else:
            model = hollow(lambda: LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder)))
        return cls(model, AutoImageProcessor.from_pretrained(folder, backend="pil"))

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

    def save(self, folder: Path | None, dtype: torch.dtype = torch.float32) -> None:
        export(self.model, folder, dtype)
        if folder is not None and processes.first():
            self.processor.save_pretrained(folder)
            # What transformers' pipelines need beside it, so that they read pictures and prompts as is done here.
            settings = self.model.config
            processor = {
                "processor_class": "LlavaProcessor",
                "patch_size": settings.vision_config.patch_size,
                "vision_feature_select_strategy": settings.vision_feature_select_strategy,
                # The tower's class token, which the strategy leaves out again.
                "num_additional_image_tokens": 1,
                "image_token": IMAGE_TOKEN,
            }
            write_json(folder / "processor_config.json", processor)
            write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
