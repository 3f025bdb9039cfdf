"""Training on two processes, the model in each of them or sharded: the same gradients, losses and files as on one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prior import models
from prior.config.jobs import ParallelJob
from prior.models.attention import pack
from prior.packing import Packer, plan_rows
from prior.scores import token_logprobs
from prior.state import last_whole, read_lines
from tests.prior.distributed import (
    HALF,
    KINDS,
    RECIPE,
    WAYS,
    Killed,
    build,
    build_all_trained,
    documents,
    first_step,
    killed_after,
    run,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, records: Any, llm: Path, vision: Path) -> Path:
    """All that two processes made; before them, one process was killed on its way."""
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer.save_pretrained(folder / "tokenizer")
    records.save_to_disk(str(folder / "records"))
    for source in (llm, vision):
        shutil.copytree(source, folder / source.name[:-1])
        bare = shutil.copytree(source, folder / "without_weights" / source.name[:-1])
        (bare / "model.safetensors").unlink()
    for way in WAYS:
        with suppress(Killed):
            run(build_all_trained(folder), folder, folder / f"one-to-{way}", at_steps=killed_after(3))
    call = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "tests/prior/distributed.py",
        folder,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, call)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> list[dict[str, Any]]:
    run(build_all_trained(folder), folder, folder / "undisturbed")
    return read_lines(folder / "undisturbed/log.jsonl")


def same_lines(state: Path, expected: list[dict[str, Any]]) -> None:
    lines = read_lines(state / "log.jsonl")
    for name in ("step", "tokens", "lr"):
        assert [line[name] for line in lines] == [line[name] for line in expected]
    for name in ("loss", "objective", "grad_norm", "loss_relevant", "loss_other"):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], rel=1e-4)


def test_the_processes_have_unequal_shares(arch: str, folder: Path) -> None:
    captions = documents(folder)
    lengths = Packer(captions, 1, build(arch, folder)).lengths()
    rows = plan_rows(lengths, np.tile(np.arange(len(captions)), 2), RECIPE.row_tokens)
    labels = [int(captions.targets.lengths[row].sum()) for row in rows]
    assert sum(labels[0:4:2]) != sum(labels[1:4:2])
    assert len(rows) % 2, "one process ends with a row without labels"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_process(kind: str, arch: str, folder: Path) -> None:
    state = folder / f"{arch}-{kind}-one"
    lvlm = build(arch, folder)
    expected = first_step(lvlm, folder, state, kind)
    logprob = token_logprobs(lvlm.model.eval(), Packer(documents(folder), 1, lvlm), row_tokens=100)
    for way in WAYS:
        place = folder / f"{arch}-{kind}-{way}"
        found = torch.load(place / "found.pt", weights_only=False)
        assert found["grads"].keys() == expected.keys()
        for name, grad in expected.items():
            error = float((found["grads"][name] - grad).abs().max() / grad.abs().max())

            assert error < 1e-6, (way, name, error)
        same_lines(place, read_lines(state / "log.jsonl"))
        np.testing.assert_allclose(found["logprob"], logprob, atol=1e-4)
        # What is exported is what was measured.
        exported = models.load(place / "final")
        pack(exported.model)
        again = token_logprobs(exported.model.eval(), Packer(documents(folder), 1, exported), row_tokens=100)
        np.testing.assert_allclose(found["logprob"], again, atol=1e-5)
        assert sorted(path.name for path in (place / "final").glob("*.safetensors")) == ["model.safetensors"]


@pytest.mark.parametrize("way", ["fsdp", "checkpointed"])
def test_each_layer_is_a_unit_of_fsdp(way: str, arch: str, folder: Path) -> None:
    units = json.loads((folder / f"{arch}-ntp-{way}/units.json").read_text())
    assert units.count("LlamaDecoderLayer") == 2
    assert units.count("CLIPEncoderLayer") == (2 if arch == "hlvlm" else 0)


@pytest.mark.parametrize("way", WAYS)
def test_one_process_goes_on_where_two_were_killed(way: str, folder: Path, undisturbed: list[dict[str, Any]]) -> None:
    state = folder / f"{way}-to-one"
    checkpoint = last_whole(state)
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"
    run(build_all_trained(folder), folder, state, scaling=WAYS[way])
    same_lines(state, undisturbed)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_go_on_where_one_was_killed(way: str, folder: Path, undisturbed: list[dict[str, Any]]) -> None:
    same_lines(folder / f"one-to-{way}", undisturbed)


def test_gradient_checkpointing_changes_nothing(arch: str, folder: Path, tmp_path: Path) -> None:
    plain, saving = (build(arch, folder) for _ in range(2))
    run(plain, folder, tmp_path / "plain")
    run(saving, folder, tmp_path / "saving", scaling=ParallelJob(gradient_checkpointing=True))
    for (name, ours), expected in zip(saving.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, expected), name


def test_a_training_ends_early_on_the_schedule_of_the_whole_and_goes_on(
    folder: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert run(build_all_trained(folder), folder, tmp_path, until=3) == 3
    without_times = [{**line, "seconds": 0} for line in undisturbed]
    assert [{**line, "seconds": 0} for line in read_lines(tmp_path / "log.jsonl")] == without_times[:3]
    assert run(build_all_trained(folder), folder, tmp_path) == len(undisturbed)
    assert [{**line, "seconds": 0} for line in read_lines(tmp_path / "log.jsonl")] == without_times


def test_half_precision_stays_close(arch: str, folder: Path, tmp_path: Path) -> None:
    (single, *_) = read_lines(folder / f"{arch}-ntp-ddp/log.jsonl")
    run(build(arch, folder), folder, tmp_path, settings=HALF, until=1)
    for state in (tmp_path, folder / f"{arch}-half-precision"):
        (half,) = read_lines(state / "log.jsonl")
        assert half["loss"] == pytest.approx(single["loss"], rel=1e-2)
        assert half["loss"] != single["loss"]


def test_weights_are_exported_in_half_precision_and_loaded_in_single(lvlm: Any, tmp_path: Path) -> None:
    lvlm.save(tmp_path, torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert models.load(tmp_path, torch.bfloat16).model.dtype == torch.bfloat16
    again = models.load(tmp_path).model.state_dict()
    for name, tensor in lvlm.model.state_dict().items():
        assert torch.equal(again[name], tensor.to(torch.bfloat16).float()), name
