"""Settings of models and of how they are trained: tokenizer, backbones, reference LLM, architectures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from prior.config.fields import (
    Count,
    Epochs,
    Fraction,
    Own,
    Positive,
    Rate,
    Settings,
    Source,
    Trainable,
    backbone_form,
)


class Training(Settings):
    """One run of the training loop. A row is one packed micro-batch; a step sums the gradients of `rows_per_step`."""

    learning_rate: Rate = 2e-3
    min_lr_ratio: Fraction = 0.1
    warmup_ratio: Fraction = 0.05
    weight_decay: Rate = 0.01
    max_grad_norm: Rate = 1.0
    row_tokens: Positive = 1024
    rows_per_step: Positive = 1
    epochs: Epochs = 1.0
    save_steps: Count = 0
    bf16: bool = False
    threads: Positive = 1


class ScratchTokenizer(Settings):
    """A byte-level BPE tokenizer trained on the captions and the text-only split."""

    vocab_size: Annotated[int, Field(ge=300)] = 1024


class ScratchLLM(Settings):
    """A Llama-architecture causal LM pre-trained on the text-only split."""

    hidden_size: Positive = 64
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 192
    max_positions: Positive = 512
    training: Training = Training()
    seed: Count = 0

    @model_validator(mode="after")
    def _heads(self) -> ScratchLLM:
        # Rotary positions turn the numbers of a head in pairs.
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not give {self.heads} heads an even width each; "
                f"make it a multiple of {2 * self.heads}"
            )
        return self


class ScratchVision(Settings):
    """A CLIP trained contrastively on the training pictures, of which the vision tower is kept."""

    hidden_size: Positive = 64
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 192
    image_size: Positive = 48
    patch_size: Positive = 16
    batch_size: Positive = 128
    epochs: Epochs = 4.0
    learning_rate: Rate = 1e-3
    threads: Positive = 1
    seed: Count = 0

    @model_validator(mode="after")
    def _shape(self) -> ScratchVision:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.heads} heads; "
                f"make it a multiple of {self.heads}"
            )
        _whole_patches("image_size", self.image_size, self.patch_size)
        return self


def _whole_patches(name: str, side: int, patch_size: int) -> None:
    if side % patch_size:
        raise ValueError(f"{name} {side} is not a multiple of patch_size {patch_size}; make it one")


class Tokenizer(Settings):
    scratch: ScratchTokenizer = ScratchTokenizer()


class LLM(Settings):
    scratch: ScratchLLM = ScratchLLM()


class Vision(Settings):
    scratch: ScratchVision = ScratchVision()

    @property
    def threads(self) -> int:
        return self.scratch.threads


class HubModel(Settings):
    """A model of a hub whose shape is known before it is fetched.

    Attributes
    ----------
    hub
        Its id there, or a folder.
    config
        Keys of its ``config.json``, `model_type` among them: what sizes are planned with, and what the download is
        held against.
    """

    hub: Source
    config: dict[str, Any]

    @field_validator("config")
    @classmethod
    def _type(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("model_type"), str):
            raise ValueError("model_type is missing; copy it from the model's config.json")
        return value


Backbone = Annotated[
    Annotated[Source, Tag("<source>")] | Annotated[HubModel, Tag("<hub>")] | Annotated[Own, Tag("<settings>")],
    Discriminator(backbone_form),
]


class Backbones(Settings):
    """Each backbone is a hub id, a local folder, ``hub: …`` with its config, or ``scratch: {…}``."""

    llm: Backbone[LLM] = LLM()
    vision: Backbone[Vision] = Vision()

    @property
    def hub_llm(self) -> str | None:
        """Where the LLM comes from if it is not trained here."""
        return self.llm.hub if isinstance(self.llm, HubModel) else self.llm if isinstance(self.llm, str) else None

    @property
    def hub_vision(self) -> str | None:
        """Where the vision tower comes from if it is not trained here."""
        vision = self.vision
        return vision.hub if isinstance(vision, HubModel) else vision if isinstance(vision, str) else None


class Lora(Settings):
    """Low-rank adapters on all linear layers (arXiv 2106.09685), merged into the weights when they are trained."""

    rank: Positive = 64
    alpha: Positive = 128


class Reference(Settings):
    """The text-only reference LLM: the base LLM trained on the captions without the pictures.

    With `text_only` it also learns from the corpus's captions that have no picture; with `lora` adapters are trained in
    place of all weights. How well it knows the captions is measured on `quality_captions` of them.
    """

    training: Training = Training(learning_rate=1e-3)
    cross_fit: Count = 0
    text_only: bool = False
    lora: Lora | None = None
    quality_captions: Positive = 20_000
    seed: Count = 0

    @model_validator(mode="after")
    def _folds(self) -> Reference:
        if self.cross_fit == 1:
            raise ValueError("cross_fit needs at least 2 folds, or 0 for none")
        return self


class HLVLM(Settings):
    """A vision tower joined to an LLM by a two-layer MLP (LLaVA-1.5); `rows_per_step` in place of the training's."""

    rows_per_step: Positive | None = None
    vision_feature_layer: int = -2
    trainable: Trainable[Literal["projector", "llm", "vision"]] = ("projector", "llm")


class ULVLM(Settings):
    """One causal LM that reads linearly embedded patches (SOLO); `rows_per_step` in place of the training's."""

    rows_per_step: Positive | None = None
    patch_size: Positive = 16
    max_side: Positive = 48
    trainable: Trainable[Literal["projector", "llm"]] = ("projector", "llm")

    @model_validator(mode="after")
    def _patches(self) -> ULVLM:
        _whole_patches("max_side", self.max_side, self.patch_size)
        return self


class Architectures(Settings):
    hlvlm: HLVLM | None = HLVLM()
    ulvlm: ULVLM | None = ULVLM()

    def names(self) -> list[str]:
        return [name for name in ("hlvlm", "ulvlm") if getattr(self, name) is not None]
