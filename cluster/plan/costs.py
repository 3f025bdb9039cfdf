"""The arithmetic of a plan: rows, FLOPs and bytes by formula, each with its source.

FLOPs count a multiplication and an addition as two. Bytes are those of one GPU. Nothing here reads a file or knows a
preset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from cluster.plan.shapes import Shape, Stack

Bytes = dict[str, float]

# CUDA's context, NCCL's buffers and fragments that the allocator cannot give away.
RESERVE = 3e9


@dataclass(frozen=True)
class Document:
    """A caption, or a question with its answer, in the mean.

    Attributes
    ----------
    picture
        Positions that stand for its picture.
    labels
        Tokens that carry a label, end of sequence included; the opening ``<s>`` takes the place that the last label,
        which is never read, leaves.
    prompt
        Tokens before them that carry none.
    spread
        Standard deviation of the whole length.
    patches
        Patches of the picture that the vision tower, or the patch embedding, reads.
    """

    labels: float
    picture: int = 0
    prompt: float = 0.0
    spread: float = 0.0
    patches: int = 0

    @property
    def positions(self) -> float:
        """Positions that the language model computes."""
        return self.picture + self.prompt + self.labels

    @property
    def pairs(self) -> float:
        """Pairs of positions of causal attention, E[n (n + 1) / 2]."""
        return (self.positions**2 + self.spread**2 + self.positions) / 2


def documents_per_row(mean: float, spread: float, row_tokens: int) -> float:
    """How many whole documents a row takes in the mean, if rows are filled in order (`prior.packing.plan_rows`).

    Of documents of normally distributed lengths n fit with probability Φ((row + ½ − n·μ) / (σ √n)); the sum over n is
    the expected number (renewal theory, Feller vol. II, ch. XI). The document that opens a row did not fit into the one
    before and is longer than others, by σ²/μ in the mean (the inspection paradox), which takes (σ/μ)² documents away.
    A document longer than a row has one of its own.
    """
    most = math.ceil(row_tokens / mean * 3) + 10
    normal = NormalDist()
    fit = [
        normal.cdf((row_tokens + 0.5 - n * mean) / (spread * math.sqrt(n))) if spread else n * mean <= row_tokens
        for n in range(1, most)
    ]
    return max(1.0, sum(fit) - (spread / mean) ** 2)


def passes(trained: bool, reached: bool, recomputed: bool) -> int:
    """Passes of a linear layer in a training step, each as long as a forward pass.

    One forward; one for the gradient of its weights if it is `trained`; one for that of its input if something before
    it is trained (`reached`); one more forward if its activations are `recomputed`. All but the last: C ≈ 6·N·D (Kaplan
    et al., arXiv 2001.08361, section 2.1), of which 2·N·D are the forward pass.
    """
    backward = trained + reached
    return 1 + backward + (recomputed and backward > 0)


def attention(stack: Stack, pairs: float) -> float:
    """FLOPs of attention's two products, QKᵀ and their weights times V, forward: 4 · layers · width of queries · pairs.

    Kaplan et al., table 1, count 2·n_layer·n_ctx·d_attn for each of them and each token, masked pairs included.
    """
    return 4 * stack.layers * stack.queries * pairs


def flops(shape: Shape, document: Document, training: bool, checkpointing: bool = False) -> float:
    """FLOPs of one document: forward, and in a training backward too.

    2 · weights · positions for each pass of a linear layer, attention within the document (its backward pass is two
    forward ones), the LM head at labels alone. Norms, activation functions and the optimizer are left out.
    """
    return sum(flops_by_part(shape, document, training, checkpointing).values())


def flops_by_part(shape: Shape, document: Document, training: bool, checkpointing: bool = False) -> dict[str, float]:
    """The summands of `flops`."""
    trained = shape.trained if training else frozenset()
    adapted = training and shape.adapters > 0
    llm, vision, projector = "llm" in trained, "vision" in trained, "projector" in trained
    # Token embeddings are part of the LLM: if they are trained, gradients come down to its lowest layer.
    reached = llm or adapted or ((projector or vision) and document.picture > 0)
    recomputed = training and checkpointing
    decoder, weights = shape.decoder, shape.decoder.weights
    parts = {
        "decoder": 2 * weights * document.positions * passes(llm, reached, recomputed),
        "attention": attention(decoder, document.pairs) * (1 + 2 * reached + (recomputed and reached)),
        "head": 2 * shape.vocabulary * decoder.width * document.labels * passes(llm, reached, False),
        "adapters": 2 * shape.adapters * document.positions * passes(adapted, adapted, recomputed),
        "projector": 2 * shape.projector * document.patches * passes(projector, vision, False),
    }
    if shape.tower and document.patches:
        # The tower's own class token is one position more.
        seen = document.patches + 1
        forward = 2 * shape.tower.weights * seen + attention(shape.tower, seen**2)
        again = (2 + recomputed) * shape.read / shape.tower.layers if vision else 0
        parts["vision"] = forward * (1 + again) + 2 * shape.first * document.patches * passes(vision, False, False)
    return parts


def activation_bytes(stack: Stack, bf16: bool) -> float:
    """What one layer keeps of one position for its backward pass, where attention keeps no pairs (FlashAttention).

    The accounting is that of Korthikanti et al. (arXiv 2205.05198, section 4.1), for layers as transformers writes
    them: each of two norms keeps its input in float32 and its normalised and its weighted output; attention keeps
    queries, keys, values, its output, a log-sum of each head and the norms' two scales; the MLP its gate, the gate's
    activation, the values beside it and their product.
    """
    size = 2 if bf16 else 4
    norms = 2 * (4 + 2 * size) * stack.width + 8
    heads = size * (3 * stack.queries + 2 * stack.keys) + 4 * stack.heads
    mlp = (4 if stack.gated else 3) * size * stack.inner
    return norms + heads + mlp


def training_bytes(
    shape: Shape,
    positions: float,
    pictures: float,
    patches: int,
    labels: float,
    *,
    bf16: bool,
    processes: int = 1,
    fsdp: bool = False,
    checkpointing: bool = False,
) -> Bytes:
    """Most bytes of one GPU while it trains on one row, by what they hold.

    Weights, gradients and AdamW's two moments are float32: 4 + 4 + 8 bytes for each trained parameter, 4 for others
    (Rajbhandari et al., arXiv 1910.02054, section 3.1), divided by the number of processes under FSDP (their stage 3).
    Beside them lie copies in what the forward pass computes in. Under FSDP they are those of two layers, one in use and
    the next on its way, and of all that is in no layer, with gradients of one layer and of the rest before they are
    summed in float32. Otherwise, in bf16, they are those of all weights, for autocast keeps what it has converted; data
    parallelism adds buckets as large as the gradients.

    Parameters
    ----------
    positions, pictures, labels
        Of a row.
    patches
        Of one picture, in the vision tower.
    """
    size = 2 if bf16 else 4
    share = processes if fsdp else 1
    state = {
        "weights": 4 * shape.parameters / share,
        "gradients": 4 * shape.trainable / share,
        "optimizer": 8 * shape.trainable / share,
    }
    layer = shape.decoder.layer
    outside = shape.parameters - shape.decoder.layers * layer
    if shape.tower:
        outside -= shape.tower.layers * shape.tower.layer
    if fsdp:
        copies = size * (outside + 2 * layer)
        copies += (size + 4) * (outside + layer) if shape.trainable > shape.adapters else 0
    else:
        copies = (size * shape.parameters if bf16 else 0) + (4 * shape.trainable if processes > 1 else 0)
    return state | {
        "copies": copies,
        "activations": _activations(shape, positions, pictures, patches, bf16, checkpointing),
        # What the head computes, in float32 too, its log-softmax and the gradients of both.
        "logits": labels * shape.vocabulary * (size + 4 + 4 + 4),
        "reserve": RESERVE,
    }


def _activations(
    shape: Shape, positions: float, pictures: float, patches: int, bf16: bool, checkpointing: bool
) -> float:
    """Kept for the backward pass; under checkpointing inputs of layers and all of one layer."""

    def kept(stack: Stack, count: float) -> float:
        whole = activation_bytes(stack, bf16) * count
        inputs = (2 if bf16 else 4) * stack.width * count
        return stack.layers * inputs + whole if checkpointing else stack.layers * whole

    total = kept(shape.decoder, positions)
    if shape.tower:
        seen = pictures * (patches + 1)
        if "vision" in shape.trained:
            total += kept(shape.tower, seen)
        else:
            # A frozen tower keeps what each layer gives, of which one is chosen, and works in one layer at a time.
            total += seen * ((2 if bf16 else 4) * shape.tower.width * shape.tower.layers)
            total += seen * activation_bytes(shape.tower, bf16)
    return total + pictures * patches * shape.pixels * 4


def inference_bytes(
    shape: Shape,
    positions: float,
    labels: float,
    *,
    bf16: bool,
    cached: float = 0,
    pictures: float = 0,
    patches: int = 0,
) -> Bytes:
    """Most bytes of one GPU that scores or answers: weights, one layer's work at a time, logits, keys and values.

    Parameters
    ----------
    positions, labels
        Computed at a time, and those of them with logits.
    cached
        Positions whose keys and values are kept: 2 · layers · width of keys each.
    """
    size = 2 if bf16 else 4
    work = positions * activation_bytes(shape.decoder, bf16)
    if shape.tower:
        seen = pictures * (patches + 1)
        work = max(work, seen * activation_bytes(shape.tower, bf16)) + seen * size * shape.tower.width * (
            shape.tower.layers
        )
    return {
        "weights": size * shape.parameters,
        "keys and values": 2 * size * shape.decoder.layers * shape.decoder.keys * cached,
        "activations": work + pictures * patches * shape.pixels * 4,
        "logits": labels * shape.vocabulary * (size + 4 + 4),
        "reserve": RESERVE,
    }


def decoding_seconds(shape: Shape, tokens: float, bandwidth: float, step: float) -> float:
    """Time for `tokens` steps of greedy decoding, each of which reads all weights (bf16) and starts all kernels.

    Parameters
    ----------
    bandwidth
        Of the GPU's memory, bytes per second.
    step
        Seconds for starting one step's kernels: what a step takes at least.
    """
    return tokens * max(2 * shape.parameters / bandwidth, step)
