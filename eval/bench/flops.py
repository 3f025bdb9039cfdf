"""How many floating-point operations a training step needs: allowed attention pairs and needed gradients alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prior.models.hlvlm import patch_count

# A matrix product costs two operations for each pair of factors; with the gradients of both of them it costs three
# times as much, with the gradient of one of them twice.
FORWARD, ONE_GRADIENT, BOTH_GRADIENTS = 2, 4, 6


def causal_pairs(lengths: Sequence[int]) -> int:
    """Pairs of positions of which one sees the other, in documents of these lengths."""
    return sum(length * (length + 1) // 2 for length in lengths)


def training_step(config: Any, tokens: int, pairs: int, labels: int, pictures: int) -> int:
    """Operations of matrix products in one step over an H-LVLM whose vision tower is frozen.

    Parameters
    ----------
    config
        `LlavaConfig` with a Llama and a CLIP tower.
    tokens, labels
        Positions of the language model; those whose next token is predicted.
    pairs
        Pairs of positions that attention computes, over all documents; see `causal_pairs`.
    pictures
        How many go through the tower.
    """
    text, vision = config.text_config, config.vision_config
    kept = text.num_key_value_heads / text.num_attention_heads
    layer = text.hidden_size**2 * (2 + 2 * kept) + 3 * text.hidden_size * text.intermediate_size
    # Queries with keys, and attention with values.
    attention = 2 * text.hidden_size * pairs
    language = BOTH_GRADIENTS * text.num_hidden_layers * (layer * tokens + attention)
    head = BOTH_GRADIENTS * text.hidden_size * text.vocab_size * labels
    patches = patch_count(vision)
    # Nothing before the projector learns, so its input needs no gradient.
    projector = patches * text.hidden_size * (ONE_GRADIENT * vision.hidden_size + BOTH_GRADIENTS * text.hidden_size)
    return int(
        language + head + pictures * (projector + FORWARD * _tower(vision, patches, config.vision_feature_layer))
    )


def _tower(vision: Any, patches: int, feature_layer: int) -> int:
    """Multiplications for one picture, up to the layer whose output is used."""
    width, seen = vision.hidden_size, patches + 1
    layers = vision.num_hidden_layers + 1 + feature_layer
    layer = seen * (4 * width**2 + 2 * width * vision.intermediate_size) + 2 * width * seen**2
    return patches * 3 * vision.patch_size**2 * width + layers * layer
