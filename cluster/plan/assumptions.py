"""What a plan takes for granted: default values, their permitted range, and how others are given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from prior.config.fields import Positive, Rate, Settings
from prior.errors import UserError
from prior.presets import explain


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value)
    if not size:
        raise ValueError(f"'{value}' is no size; write width and height in pixels, as in 640x480")
    return int(size[1]), int(size[2])


Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Amount = Annotated[float, Field(ge=1)]
Speed = Annotated[float, Field(ge=0.01)]
Share = Annotated[float, Field(ge=0.01, le=1)]


class Assumptions(Settings):
    """What a preset does not say and a plan needs.

    Attributes
    ----------
    caption_tokens, caption_spread
        Mean tokens of a caption, end of sequence included, and their standard deviation over it.
    captions, captions_per_file
        Of the training split; of a WebDataset, in each tar file, unless `captions` is given.
    picture, picture_kb
        Width and height of all pictures in pixels; size of a picture's file.
    prompt_tokens
        Of a benchmark's question.
    gpu_tflops, gpu_memory_gb, gpu_bandwidth_tb
        Of one GPU: dense bf16 TFLOP/s, memory in GB, its bandwidth in TB/s.
    utilisation
        Share of `gpu_tflops` that is reached.
    cpu_gflops
        What one process without a GPU reaches.
    decode_ms
        What a step of generation takes at least.
    download_mb
        MB/s of all downloads together.
    start_minutes, small_minutes
        What a job with a model takes before it computes; what a job without a model takes in all.
    """

    caption_tokens: Amount = 27.0
    caption_spread: Rate = 0.8
    captions: Positive | None = None
    captions_per_file: Positive = 5041
    picture: Size = (640, 480)
    picture_kb: Rate = 100.0
    prompt_tokens: Amount = 80.0
    gpu_tflops: Amount = 989.0
    gpu_memory_gb: Amount = 80.0
    gpu_bandwidth_tb: Speed = 3.35
    utilisation: Share = 0.4
    cpu_gflops: Speed = 20.0
    decode_ms: Rate = 30.0
    download_mb: Speed = 100.0
    start_minutes: Rate = 5.0
    small_minutes: Rate = 5.0


def read_assumptions(given: Iterable[str]) -> Assumptions:
    """Assumptions with other values for some, each written ``key=value``; of a key given twice the later value counts.

    Raises
    ------
    UserError
        If a text is not written so, a key is none of ours, or a value is not permitted.
    """
    values = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--assume: '{text}' gives no value; write key=value, as in utilisation=0.5")
        if key not in Assumptions.model_fields:
            raise UserError(f"--assume: '{key}' is no assumption; there are {', '.join(Assumptions.model_fields)}")
        values[key] = value
    try:
        return Assumptions.model_validate_strings(values)
    except ValidationError as error:
        raise UserError(f"--assume: {'; '.join(explain(error, Assumptions))}") from None
