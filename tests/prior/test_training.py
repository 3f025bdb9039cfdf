"""The training loop: normalisation over the whole step, what is trained, and the schedule of the learning rate."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prior import config
from prior.documents import Documents, tokenize_captions
from prior.loss import token_nll
from prior.models.attention import pack
from prior.packing import Packer, model_inputs
from prior.state import read_lines
from prior.training import Rows, train
from prior.weighting import prior_weights

RECIPE = config.Training(row_tokens=120, rows_per_step=3, learning_rate=1e-3, warmup_ratio=0.0, min_lr_ratio=1.0)


@pytest.fixture
def documents(records: Any, tokenizer: Any) -> Documents:
    from dataclasses import replace

    made = tokenize_captions(records, tokenizer)
    logprob = -np.random.default_rng(0).exponential(1.0, len(made.targets.values)).astype(np.float32)
    return replace(made, ref_logprob=made.targets.beside(logprob))


@pytest.mark.parametrize("kind", ["ntp", "prior"])
def test_a_step_of_unequal_rows_equals_one_batch(
    kind: str, lvlm: Any, tokenizer: Any, documents: Documents, tmp_path: Path
) -> None:
    """AdamW after one accumulated step against a plain step on all captions at once, weights included."""
    packer = Packer(documents, tokenizer.bos_token_id, lvlm)
    order = np.arange(9)
    plain = copy.deepcopy(lvlm.model)
    steps = train(
        lvlm.model, packer, order, RECIPE.model_copy(update={"row_tokens": 150, "rows_per_step": 100}),
        seed=0, state_dir=tmp_path, objective=config.Objective(kind=kind),
    )  # fmt: skip
    assert steps == 1
    pack(plain)
    row = packer.row(order)
    nll = token_nll(plain(**model_inputs(row), use_cache=False).logits, row["labels"])
    weights = prior_weights(row["ref_logprob"], row["caption_index"], 1.0 if kind == "prior" else 0.0)
    (nll * weights).mean().backward()
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, eps=1e-8).step()
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["objective"] == pytest.approx(float((nll * weights).mean()), rel=1e-5)
    assert line["loss"] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert line["loss_relevant"] == pytest.approx(float(nll[row["relevant"] == 1].mean()), rel=1e-5)
    for (name, ours), expected in zip(lvlm.model.named_parameters(), plain.parameters(), strict=True):
        # Weight decay of the loop is small beside the step; Adam's first step has the sign of the gradient.
        torch.testing.assert_close(ours, expected, atol=6e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_frozen_parts_stay_and_trained_parts_move(
    lvlm: Any, tokenizer: Any, documents: Documents, tmp_path: Path
) -> None:
    before = {name: parameter.clone() for name, parameter in lvlm.model.named_parameters()}
    packer = Packer(documents, tokenizer.bos_token_id, lvlm)
    train(lvlm.model, packer, np.arange(9), RECIPE, seed=0, state_dir=tmp_path)
    for name, parameter in lvlm.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("vision_tower" in name), name


def test_a_loader_goes_on_when_its_job_is_told_to_end(lvlm: Any, tokenizer: Any, documents: Documents) -> None:
    """The signal reaches all processes of a job; the one that trains needs its rows until it has saved."""
    packer = Packer(documents, tokenizer.bos_token_id, lvlm)
    rows = Rows([[index] for index in range(8)], packer.row)
    loader = iter(DataLoader(rows, batch_size=None, num_workers=1))
    found = [next(loader)]
    os.kill(loader._workers[0].pid, signal.SIGTERM)
    found += list(loader)
    for index, row in enumerate(found):
        assert torch.equal(row["labels"], packer.row([index])["labels"])
        assert torch.equal(row["pixel_values"], packer.row([index])["pixel_values"])
    assert len(found) == 8


@pytest.mark.parametrize(("ratio", "rising"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_warm_up_takes_its_share_of_the_steps(
    ratio: float, rising: int, lvlm: Any, tokenizer: Any, documents: Documents, tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(update={"warmup_ratio": ratio, "rows_per_step": 1, "row_tokens": 1})
    packer = Packer(documents, tokenizer.bos_token_id)
    assert train(lvlm.model, packer, np.arange(8), recipe, seed=0, state_dir=tmp_path) == 8
    rates = [line["lr"] for line in read_lines(tmp_path / "log.jsonl")]
    expected = [1e-3 * min(step / rising, 1) if rising else 1e-3 for step in range(8)]
    assert rates == pytest.approx(expected)
