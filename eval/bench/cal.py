"""CAL (`foundation-multimodal-models/CAL`, NeurIPS 2024), a rival that weights tokens by a second forward pass.

A label weighs what its logit o gains by the picture: Δ = clip(o − õ, 1, 5), where õ is its logit with the picture
masked out of attention; w is the mean of Δ over the token and its two neighbours; loss = Σ wℓ / Σ w. As in the released
code, pictures are encoded once for both passes and õ is read off whole rows of logits; unlike there, rows are packed,
the LM head reads positions of labels alone, and neighbours end where their caption does.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prior.loss import token_nll
from prior.models.attention import language_model, packed_attention
from prior.packing import Batch, model_inputs
from prior.training import CaptionLoop

NAME = "packed_without_pictures"


def attention_without_pictures(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    is_picture: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`packed_attention` in which nothing sees a position of `is_picture` (1, tokens); none is masked without it."""
    if is_picture is None:
        return packed_attention(module, query, key, value, attention_mask, **kwargs)
    rows, cells = kwargs.pop("document_rows"), kwargs.pop("document_cells")

    def grid(states: torch.Tensor) -> torch.Tensor:
        return states[0][:, rows].transpose(0, 1)

    longest = rows.shape[1]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=rows.device).tril()
    # Every document opens with a token of text, so that each position sees one at least.
    seen = causal & ~is_picture[0][rows][:, None, None]
    output, _ = sdpa_attention_forward(module, grid(query), grid(key), grid(value), seen, **kwargs)
    return output.flatten(0, 1)[cells][None], None


AttentionInterface.register(NAME, attention_without_pictures)


def cal_weights(gain: torch.Tensor, caption_index: torch.Tensor) -> torch.Tensor:
    """Mean of clip(gain, 1, 5) over each token and its neighbours in the same caption.

    Parameters
    ----------
    gain, caption_index : tensors of shape (tokens,)
        o − õ of each label, and the caption that it belongs to; a caption's labels lie side by side.
    """
    clipped = gain.clamp(1.0, 5.0)
    total, count = clipped.clone(), torch.ones_like(clipped)
    together = (caption_index[1:] == caption_index[:-1]).to(clipped)
    total[1:] += clipped[:-1] * together
    total[:-1] += clipped[1:] * together
    count[1:] += together
    count[:-1] += together
    return total / count


class CALLoop(CaptionLoop):
    """Our loop with CAL's loss."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        language_model(kwargs["model"]).set_attn_implementation(NAME)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one row; a step has one row, over whose tokens CAL normalises."""
        given: dict[str, Any] = {**model_inputs(inputs), "use_cache": False}
        given["mm_encoder_outputs"] = {
            "image": model.get_image_features(pixel_values=given.pop("pixel_values"), return_dict=True)
        }
        label = inputs["labels"][:, None]
        with torch.no_grad():
            blind = model(**given, is_picture=inputs["is_picture"]).logits.gather(1, label)
        logits = model(**given).logits
        nll = token_nll(logits, inputs["labels"])
        with torch.no_grad():
            weights = cal_weights((logits.gather(1, label) - blind)[:, 0].float(), inputs["caption_index"])
        self.tokens_seen += nll.numel()
        self.watch("loss", nll.detach())
        return (nll * weights).sum() / weights.sum()
