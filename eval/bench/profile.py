"""Where the time of a training step goes: operators by their own time, beside what matrix products alone would take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eval.bench import sizes
from prior.errors import UserError
from prior.files import write_text

SHOWN = 15


def profile(
    size: Annotated[str, typer.Option(help="A size of model, as 32k.")] = "32k",
    loop: Annotated[str, typer.Option(help="ntp, prior, cal or stock.")] = "ntp",
    threads: Annotated[int, typer.Option(help="One by default: waiting for other threads would count as work.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of profile_<size>_<loop>.txt.")] = Path("results/bench"),
) -> None:
    """Profile one round of training."""
    known = [one.name for several in sizes.SIZES.values() for one in several]
    if size not in known:
        raise UserError(f"--size {size}: there is no size of that name; take one of {', '.join(known)}")
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    from eval.bench import sides
    from eval.bench.worker import matmul

    torch.set_num_threads(threads)
    chosen = sizes.find(size)
    side = sides.training(chosen, loop)
    side()
    plain = side()
    reached = matmul(chosen.matmul, torch.bfloat16 if chosen.bf16 else torch.float32)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with recording(activities=activities) as recorded:
        side()
    steps = sides.STEPS - 1
    lines = [f"{size}, {loop}: {plain['seconds'] / steps:.2f} s a step, {threads} thread(s)"]
    if "flops" in plain:
        needed = plain["flops"] / steps
        lines.append(
            f"needed: {needed / 1e9:.0f} G operations of matrix products, {needed / reached:.2f} s at the "
            f"{reached / 1e9:.0f} G/s of large ones"
        )
    table = recorded.key_averages()
    own = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    total = sum(getattr(entry, own) for entry in table)
    lines += ["", f"{'share':>6}  {'calls a step':>12}  operator"]
    for entry in sorted(table, key=lambda entry: -getattr(entry, own))[:SHOWN]:
        lines.append(f"{getattr(entry, own) / total:6.1%}  {entry.count / sides.STEPS:12.0f}  {entry.key}")
    text = "\n".join(lines) + "\n"
    write_text(out / f"profile_{size}_{loop}.txt", text)
    print(text)
