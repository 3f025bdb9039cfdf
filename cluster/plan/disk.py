"""The files of a preset: how many bytes they take, and how they come about."""

from __future__ import annotations

from cluster.plan.work import Work
from prior.config import LLM

# Whole private checkpoints that a training keeps (`prior.training.arguments`), and bytes of one trained parameter in
# them: the weight and AdamW's two moments in float32.
KEPT, PRIVATE = 2, 12


def disk(work: Work) -> list[tuple[str, float, str]]:
    """Files by what they are: bytes, and how they come about."""
    preset, given = work.preset, work.given
    seeds, pictures = preset.seeds, (work.captions + work.heldout) * given.picture_kb * 1000
    size = 2 if preset.pretrain.bf16 else 4
    reference = work.models["reference"]
    tokens = (work.captions + work.heldout) * given.caption_tokens
    finals = sum(size * work.models[cell.arch].parameters for cell in work.cells) * seeds
    stages = len(preset.stages)
    kept = sum(size * work.models[cell.arch].parameters * len(cell.kept) for cell in work.cells) * seeds
    private = {
        arch: KEPT * (4 * shape.parameters + (PRIVATE - 4) * shape.trainable) for arch, shape in work.models.items()
    }
    on_the_way = max((size * work.models[cell.arch].parameters * len(cell.kept) for cell in work.cells), default=0)
    rows = sum(map(work.rows, preset.benchmarks))
    finals_asked = len(preset.runs()) * len(preset.evaluation.pictures)
    answers = rows * (finals_asked + (work.checkpoints - len(preset.runs()) if preset.asked_on_the_way else 0))
    found = [
        ("corpus", pictures, f"{given.picture_kb:g} kB a picture"),
        ("tokens", 8 * tokens + 40 * work.captions, "8 bytes a token, 40 a caption"),
        ("scores", 8 * tokens + 40 * work.captions, "8 bytes a token, 40 a caption"),
        ("reference", size * reference.parameters * max(preset.reference.cross_fit, 1), f"{size} bytes a weight"),
        ("runs: last checkpoints", finals * stages, f"{size} bytes a weight"),
        ("runs: kept steps", kept, f"{size} bytes a weight"),
        (
            "private, of each training under way",
            max(private.values()) + on_the_way,
            f"the last {KEPT}: weights and Adam in float32; kept steps; gone when it is done",
        ),
        ("predictions", 400 * answers, "400 bytes an answer"),
    ]
    for name, count in work.fetched.items():
        how = "each file goes when its shard is prepared" if name == "files" else "as published"
        found.insert(0, (f"downloads: {name}", count, how))
    if not isinstance(preset.backbones.llm, LLM):
        found.append(("base LLM", 2 * reference.parameters, "2 bytes a weight"))
    return [entry for entry in found if entry[1]]
