"""``python -m cluster.plan``: what a preset costs, on the screen and in a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cluster.plan.assumptions import Assumptions
from prior.cli import PresetName, _load, run
from prior.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def plan(
    preset: PresetName,
    out: Annotated[Path | None, typer.Option(help="A Markdown file for the page, beside the screen.")] = None,
    captions: Annotated[int | None, typer.Option(min=1, help="Of the training split.")] = None,
    captions_per_file: Annotated[int, typer.Option(min=1, help="Of a tar file.")] = Assumptions.captions_per_file,
    caption_tokens: Annotated[
        float, typer.Option(min=1, help="Mean, end of sequence included.")
    ] = Assumptions.caption_tokens,
    caption_spread: Annotated[
        float, typer.Option(min=0, help="Their standard deviation over their mean.")
    ] = Assumptions.caption_spread,
    picture: Annotated[str, typer.Option(help="Width and height in pixels.")] = "{}x{}".format(*Assumptions.picture),
    picture_kb: Annotated[float, typer.Option(min=0, help="Of a picture's file.")] = Assumptions.picture_kb,
    prompt_tokens: Annotated[float, typer.Option(min=1, help="Of a benchmark's question.")] = Assumptions.prompt_tokens,
    gpu_tflops: Annotated[float, typer.Option(min=1, help="Dense bf16 TFLOP/s of a GPU.")] = Assumptions.gpu_tflops,
    gpu_memory_gb: Annotated[float, typer.Option(min=1)] = Assumptions.gpu_memory_gb,
    gpu_bandwidth_tb: Annotated[
        float, typer.Option(min=0.01, help="TB/s of a GPU's memory.")
    ] = Assumptions.gpu_bandwidth_tb,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of --gpu-tflops reached.")
    ] = Assumptions.utilisation,
    cpu_gflops: Annotated[
        float, typer.Option(min=0.01, help="Reached by a process without a GPU.")
    ] = Assumptions.cpu_gflops,
    decode_ms: Annotated[
        float, typer.Option(min=0, help="What a step of generation takes at least.")
    ] = Assumptions.decode_ms,
    download_mb: Annotated[
        float, typer.Option(min=0.01, help="MB/s of all downloads together.")
    ] = Assumptions.download_mb,
    start_minutes: Annotated[float, typer.Option(min=0, help="Before a GPU job computes.")] = Assumptions.start_minutes,
    small_minutes: Annotated[float, typer.Option(min=0, help="Of a job without a model.")] = Assumptions.small_minutes,
) -> None:
    """Say what a preset costs before anything is run: jobs, parameters, tokens, FLOPs, memory, disk and time."""
    from cluster.plan.page import page
    from cluster.plan.work import Work
    from prior.files import write_text

    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", picture)
    if not size:
        raise UserError(f"--picture: '{picture}' is no size; write width and height in pixels, as in 640x480")
    given = Assumptions(
        captions=captions,
        captions_per_file=captions_per_file,
        caption_tokens=caption_tokens,
        caption_spread=caption_spread,
        picture=(int(size[1]), int(size[2])),
        picture_kb=picture_kb,
        prompt_tokens=prompt_tokens,
        gpu_tflops=gpu_tflops,
        gpu_memory_gb=gpu_memory_gb,
        gpu_bandwidth_tb=gpu_bandwidth_tb,
        utilisation=utilisation,
        cpu_gflops=cpu_gflops,
        decode_ms=decode_ms,
        download_mb=download_mb,
        start_minutes=start_minutes,
        small_minutes=small_minutes,
    )
    text = page(Work(_load(preset), given))
    print(text, end="")
    if out:
        write_text(out, text)


if __name__ == "__main__":
    run(app)
