"""The page that tells people what a preset costs: Markdown tables that are aligned, so that they read well as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from textwrap import fill

from cluster.plan.checks import warnings
from cluster.plan.disk import disk
from cluster.plan.jobs import Task, largest, longest_chain, tasks_of
from cluster.plan.work import Cell, Work
from prior.config import ScenesCorpus

ARCHS = {"hlvlm": "H-LVLM", "ulvlm": "U-LVLM"}
NAMES = ARCHS | {"reference": "reference LLM"}
PARTS = ("weights", "gradients", "optimizer", "copies", "keys and values", "activations", "logits", "reserve")

# Paragraphs are as wide as one reads with ease.
WIDTH = 110

Row = Sequence[str]


def page(work: Work) -> str:
    """The whole page."""
    return "\n\n".join(_sections(work)) + "\n"


def _sections(work: Work) -> Iterator[str]:
    preset, tasks, files = work.preset, tasks_of(work), disk(work)
    hours, way = longest_chain(tasks)
    jobs = sum(task.count for task in tasks)
    gpu_hours = sum(task.gpu_hours for task in tasks)
    stored = sum(size for _, size, _ in files)
    yield f"# What the preset `{preset.name}` costs"
    yield fill(
        f"{jobs:,} jobs, {sum(task.count * task.flops for task in tasks):.2g} FLOPs, {gpu_hours:,.0f} GPU-hours, "
        f"{_bytes(stored)} of disk; {hours:.1f} hours if every job gets its GPUs at once. Worked out from the preset "
        "and from the assumptions at the end, with nothing run: expect the right order of size, not the right digit.",
        WIDTH,
    )
    if to_mend := warnings(work, tasks):
        yield "\n".join(["## To mend", "", *(f"- {line}" for line in to_mend)])
    yield "## Jobs\n\n" + table(
        ["kind", "jobs", "GPUs each", "hours each", "FLOPs in all", "GPU-hours in all"], _jobs(tasks)
    )
    yield fill(
        f"The longest chain, {hours:.1f} hours: "
        + " → ".join(f"{task.name} ({task.hours:.1f} h)" for task in tasks if task.name in way)
        + ".",
        WIDTH,
    )
    yield "## Models\n\n" + table(
        ["model", "parameters", "trained", "frozen", "layers", "positions of a picture"], _models(work)
    )
    yield "## Pre-training runs\n\n" + table(
        [
            "model", "objective", "scale", "seeds", "captions", "positions", "of pictures", "captions a row", "rows",
            "steps", "kept", "hours", "GPU-hours",
        ],
        _runs(work, tasks),
    )  # fmt: skip
    yield fill(
        "For one seed each, but GPU-hours, which are those of all seeds. Positions are what the LLM reads: pictures, "
        "`<s>` and captions. Kept: steps before the last whose checkpoints are kept and asked.",
        WIDTH,
    )
    if any(task.gpus for task in tasks):
        yield f"## Memory of one GPU ({work.given.gpu_memory_gb:g} GB)\n\n" + table(
            ["job", "peak, GB", *PARTS], _memory(work, tasks)
        )
    yield "## Disk\n\n" + table(["files", "size", "by"], [[name, _bytes(size), how] for name, size, how in files])
    yield "## Assumptions\n\n" + table(["what", "value", "key of --assume"], _assumptions(work))
    yield fill(
        "FLOPs: 2 · weights · positions for each pass (Kaplan et al., arXiv 2001.08361): a forward pass, two backward "
        "where weights are trained, one more forward where activations are computed anew; attention by causal pairs "
        "within each caption; the LM head at labels alone. Activations: Korthikanti et al., arXiv 2205.05198. Weights, "
        "gradients and Adam: Rajbhandari et al., arXiv 1910.02054. The formulas are in `cluster/plan/costs.py`.",
        WIDTH,
    )


def table(head: Row, body: Iterable[Row]) -> str:
    """An aligned Markdown table; columns of numbers are set to the right."""
    rows = list(body)
    right = [all(row[place][:1].isdigit() or not row[place] for row in rows) for place in range(len(head))]
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]

    def line(row: Row) -> str:
        cells = [
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width, numbers in zip(row, widths, right, strict=True)
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (width - 1) + (":" if numbers else "-") for width, numbers in zip(widths, right, strict=True)]
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *map(line, rows)])


def _jobs(tasks: Sequence[Task]) -> Iterator[Row]:
    kinds = list(dict.fromkeys(task.kind for task in tasks))
    for kind in kinds:
        alike = [task for task in tasks if task.kind == kind]
        times = [task.hours for task in alike]
        shortest, longest = f"{min(times):.1f}", f"{max(times):.1f}"
        flops = sum(task.count * task.flops for task in alike)
        yield [
            kind,
            f"{sum(task.count for task in alike):,}",
            str(alike[0].gpus or ""),
            longest if shortest == longest else f"{shortest} – {longest}",
            f"{flops:.2e}" if flops else "",
            f"{sum(task.gpu_hours for task in alike):,.0f}" if alike[0].gpus else "",
        ]
    yield [
        "all",
        f"{sum(task.count for task in tasks):,}",
        "",
        "",
        f"{sum(task.count * task.flops for task in tasks):.2e}",
        f"{sum(task.gpu_hours for task in tasks):,.0f}",
    ]


def _models(work: Work) -> Iterator[Row]:
    for name, shape in work.models.items():
        layers = str(shape.decoder.layers) + (f" + {shape.tower.layers} of the tower" if shape.tower else "")
        positions = "" if name == "reference" else str(work.shown(name, work.text).picture)
        frozen = shape.parameters - shape.trainable
        yield [NAMES[name], f"{shape.parameters:,}", f"{shape.trainable:,}", f"{frozen:,}", layers, positions]


def _runs(work: Work, tasks: Sequence[Task]) -> Iterator[Row]:
    named = {task.name: task for task in tasks}

    def costs(cell: Cell) -> tuple[object, ...]:
        return cell.arch, cell.scale, cell.taken, cell.kept, round(named[f"pretrain {cell.name}"].flops, -12)

    # Objectives that cost the same share a line.
    for _, part in groupby(
        sorted(work.cells, key=lambda cell: (cell.arch, work.preset.scales.index(cell.scale))), costs
    ):
        cells = list(part)
        cell = cells[0]
        task = named[f"pretrain {cell.name}"]
        captions = cell.captions * cell.share * work.preset.pretraining(cell.arch).epochs
        yield [
            NAMES[cell.arch],
            ", ".join(each.objective for each in cells),
            cell.scale,
            str(work.preset.seeds),
            f"{captions:,.0f}",
            _count(captions * cell.document.positions),
            f"{100 * cell.document.picture / cell.document.positions:.0f} %",
            f"{cell.per_row:.1f}",
            f"{cell.rows * cell.share:,.0f}",
            f"{cell.taken:,}" + (f" of {cell.steps:,}" if cell.taken < cell.steps else ""),
            str(len(cell.kept) or ""),
            f"{task.hours:.1f}",
            f"{len(cells) * task.gpu_hours:,.0f}",
        ]


def _memory(work: Work, tasks: Sequence[Task]) -> Iterator[Row]:
    for name, task in largest(tasks).items():
        much = " (too much)" if task.peak > work.given.gpu_memory_gb * 1e9 else ""
        parts = [f"{task.memory[part] / 1e9:.1f}" if task.memory.get(part) else "" for part in PARTS]
        yield [
            " ".join(ARCHS.get(word, word) for word in name.split()),
            f"{task.peak / 1e9:.1f}{much}",
            *parts,
        ]


def _assumptions(work: Work) -> Iterator[Row]:
    given = work.given
    yield ["training captions", f"{work.captions:,}", "captions, captions_per_file (5,041: CC12M's tar files)"]
    yield [
        "tokens of a caption, end of sequence included",
        f"{given.caption_tokens:g} ± {given.caption_spread * given.caption_tokens:.0f}",
        "caption_tokens (27: CC12M's mean of 20 words under Mistral's tokenizer), caption_spread",
    ]
    if not isinstance(work.preset.corpus, ScenesCorpus):
        yield ["pictures", f"{given.picture[0]}x{given.picture[1]}", "picture"]
    yield ["a picture's file", f"{given.picture_kb:g} kB", "picture_kb"]
    yield ["tokens of a benchmark's question", f"{given.prompt_tokens:g}", "prompt_tokens"]
    yield ["a GPU, dense bf16", f"{given.gpu_tflops:g} TFLOP/s", "gpu_tflops (989: H100 SXM)"]
    yield [
        "a GPU's memory",
        f"{given.gpu_memory_gb:g} GB, {given.gpu_bandwidth_tb:g} TB/s",
        "gpu_memory_gb, gpu_bandwidth_tb",
    ]
    yield ["share of its FLOP/s that is reached", f"{given.utilisation:g}", "utilisation"]
    yield ["a process without a GPU", f"{given.cpu_gflops:g} GFLOP/s", "cpu_gflops"]
    yield ["a step of generation, at least", f"{given.decode_ms:g} ms", "decode_ms"]
    yield ["all downloads together", f"{given.download_mb:g} MB/s", "download_mb"]
    yield ["a GPU job, before it computes", f"{given.start_minutes:g} minutes", "start_minutes"]
    yield ["a job without a model", f"{given.small_minutes:g} minutes", "small_minutes"]


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _bytes(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
