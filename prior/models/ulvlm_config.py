"""The U-LVLM's configuration, by which transformers' auto classes find the model; light, unlike the model."""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class ULVLMConfig(PreTrainedConfig):
    """Configuration of `ULVLMForConditionalGeneration`; token ids follow the tokenizer."""

    model_type = "prior_ulvlm"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        patch_size: int = 32,
        max_side: int = 1024,
        vision_start_token_id: int = 0,
        patch_token_id: int = 1,
        row_end_token_id: int = 2,
        vision_end_token_id: int = 3,
        **kwargs: Any,
    ) -> None:
        # Registers the model: auto classes look for it only once they hold a configuration.
        importlib.import_module("prior.models.ulvlm")
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config: PreTrainedConfig = text_config or AutoConfig.for_model("llama")
        self.patch_size = patch_size
        self.max_side = max_side
        self.vision_start_token_id = vision_start_token_id
        self.patch_token_id = patch_token_id
        self.row_end_token_id = row_end_token_id
        self.vision_end_token_id = vision_end_token_id
        super().__init__(**kwargs)


AutoConfig.register(ULVLMConfig.model_type, ULVLMConfig)
