"""What a plan takes for granted, and the one place where its default values stand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumptions:
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

    caption_tokens: float = 27.0
    caption_spread: float = 0.8
    captions: int | None = None
    captions_per_file: int = 5041
    picture: tuple[int, int] = (640, 480)
    picture_kb: float = 100.0
    prompt_tokens: float = 80.0
    gpu_tflops: float = 989.0
    gpu_memory_gb: float = 80.0
    gpu_bandwidth_tb: float = 3.35
    utilisation: float = 0.4
    cpu_gflops: float = 20.0
    decode_ms: float = 30.0
    download_mb: float = 100.0
    start_minutes: float = 5.0
    small_minutes: float = 5.0
