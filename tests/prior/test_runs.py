"""Whole runs: bit-exact resumption, private state that fits its settings, and what a run trains and logs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from prior import config, models, runs, training
from prior.backbones import train_vision
from prior.documents import tokenize_captions, tokenize_exchanges, tokenize_texts
from prior.errors import UserError
from prior.files import fingerprint
from prior.reference import score, train_reference
from prior.state import MADE_FROM, clear, private, read_lines

RECIPE = config.Training(row_tokens=60, learning_rate=1e-3, save_steps=2)
PRINTS = {"corpus": "c", "tokenizer": "t"}


class Killed(BaseException):
    """Stands for the end of a process at any line."""


Pretrain = Callable[..., Path]


@pytest.fixture
def pretrain(records: Any, tokenizer: Any, llm: Path, vision: Path, tmp_path: Path) -> Pretrain:
    """Pre-trains a run under a name of its own folder, with some settings changed."""
    documents = tokenize_captions(records, tokenizer)
    logprob = -np.random.default_rng(0).exponential(1.0, len(documents.targets.values)).astype(np.float32)
    documents = replace(documents, ref_logprob=documents.targets.beside(logprob))

    def run(
        arch: str, name: str, fingerprints: dict[str, str] = PRINTS, keep: bool = False,
        objective: str = "prior", kept: config.Trajectory | None = None, **recipe: Any,
    ) -> Path:  # fmt: skip
        preset = config.Preset(
            name="test",
            scales=["100", "150", "200"],
            objectives={
                "ntp": config.Objective(kind="ntp"),
                "prior": config.Objective(kind="prior", alpha=1.0),
                "short": config.Objective(kind="prior", alpha=1.0, scales=["200"], steps=4),
            },
            pretrain=RECIPE.model_copy(update=recipe),
            trajectory=kept,
            tune=None,
            evaluation=config.Evaluation(trajectory_points=4),
        )
        out = tmp_path / name / "out"
        runs.pretrain(
            config.Run(arch, objective, "200", 0), preset, tokenizer, llm, vision, documents, documents, out,
            tmp_path / name / "state", fingerprints, keep,
        )  # fmt: skip
        return out

    return run


def kill_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training ends after this step has been logged, before it could be saved."""
    log = training.Loop.log

    def stop(self: Any, *args: Any) -> None:
        log(self, *args)
        if self.state.global_step == step:
            monkeypatch.undo()
            raise Killed

    monkeypatch.setattr(training.Loop, "log", stop)


def same(first: Path, second: Path) -> None:
    """Two runs are equal bit for bit, but for the time that they took."""
    weights, expected = (load_file(folder / "final/model.safetensors") for folder in (first, second))
    assert all((weights[name] == expected[name]).all() for name in expected)
    for name in ("heldout.csv", "token_logprobs.arrow"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    logs = [[{**line, "seconds": 0} for line in read_lines(folder / "log.jsonl")] for folder in (first, second)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("step", [1, 5, None])
def test_an_interrupted_run_ends_bit_for_bit_like_an_undisturbed_one(
    step: int | None, arch: str, pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first checkpoint, between two, and in the last step."""
    undisturbed = pretrain(arch, "a")
    steps = yaml.safe_load((undisturbed / "run.yaml").read_text())["steps"]
    assert steps > 5
    measured = [line.split(",")[0] for line in (undisturbed / "heldout.csv").read_text().splitlines()[1:]]
    assert set(measured) == {str(round(steps * k / 4)) for k in (1, 2, 3, 4)}
    kill_after(step or steps, monkeypatch)
    with pytest.raises(Killed):
        pretrain(arch, "b")
    assert (tmp_path / "b/state/log.jsonl").exists() and not (tmp_path / "b/out").exists()
    same(pretrain(arch, "b"), undisturbed)
    assert [line["step"] for line in read_lines(tmp_path / "b/out/log.jsonl")] == list(range(1, steps + 1))
    assert not (tmp_path / "b/state").exists(), "private state goes with the run"


def test_a_run_killed_after_its_last_step_is_exported_by_the_next_attempt(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = pretrain("ulvlm", "a")

    def fail(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        raise Killed

    monkeypatch.setattr(runs, "_describe", fail)
    with pytest.raises(Killed):
        pretrain("ulvlm", "b")
    same(pretrain("ulvlm", "b"), undisturbed)


def test_a_checkpoint_on_the_way_is_where_a_run_that_ends_there_ends(
    arch: str, pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ablation keeps to the schedule of the whole; keeping checkpoints disturbs nothing, nor do interruptions."""
    undisturbed = pretrain(arch, "a")
    kept = config.Trajectory(every=2, until=4)
    kill_after(5, monkeypatch)
    with pytest.raises(Killed):
        pretrain(arch, "b", kept=kept)
    whole = pretrain(arch, "b", kept=kept)
    same(whole, undisturbed)
    short = pretrain(arch, "c", objective="short")
    described = yaml.safe_load((short / "run.yaml").read_text())
    assert described["steps"] == 4 and [line["step"] for line in read_lines(short / "log.jsonl")] == [1, 2, 3, 4]
    ends, on_the_way = (load_file(path / "model.safetensors") for path in (short / "final", whole / "step4"))
    assert all((ends[name] == on_the_way[name]).all() for name in ends)
    assert any((load_file(whole / "step2/model.safetensors")[name] != ends[name]).any() for name in ends)
    models.load(whole / "step2")
    with pytest.raises(UserError, match="lower trajectory.until"):
        pretrain(arch, "d", kept=config.Trajectory(every=100, until=100))


@pytest.mark.parametrize("save_steps", [0, 2])
def test_one_of_several_runs_of_a_job_is_not_trained_again_when_the_job_is(
    save_steps: int, arch: str, pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake removes what the job has made so far."""
    undisturbed = pretrain(arch, "a", save_steps=save_steps)
    out = pretrain(arch, "b", keep=True, save_steps=save_steps)
    same(out, undisturbed)
    shutil.rmtree(out)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(training.Loop, "training_step", fail)
    same(pretrain(arch, "b", keep=True, save_steps=save_steps), undisturbed)
    clear(tmp_path / "b/state")
    assert not (tmp_path / "b/state").exists()


@pytest.mark.parametrize("broken", ["trainer_state.json", "model/__0_0.distcp", "optimizer/.metadata"])
def test_a_checkpoint_that_was_being_written_is_passed_over(
    broken: str, pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = pretrain("ulvlm", "a")
    whole = training.mark_whole

    def cut(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-6":
            monkeypatch.undo()
            os.truncate(checkpoint / broken, 10)
            raise Killed
        whole(checkpoint)

    monkeypatch.setattr(training, "mark_whole", cut)
    with pytest.raises(Killed):
        pretrain("ulvlm", "b")
    with (tmp_path / "b/state/log.jsonl").open("a") as stream:
        stream.write('{"step": 7, "lo')
    first = []
    monkeypatch.setattr(
        training.AtSteps, "on_step_begin", lambda self, args, state, control, **_: first.append(state.global_step)
    )
    same(pretrain("ulvlm", "b"), undisturbed)
    assert first[0] == 4, "the checkpoint before it is whole"


@pytest.mark.parametrize("changed", ["settings", "inputs"])
def test_state_of_other_settings_or_inputs_is_not_resumed(
    changed: str, pretrain: Pretrain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other: dict[str, Any] = {"learning_rate": 1e-4} if changed == "settings" else {}
    if changed == "inputs":
        other = {"fingerprints": {**PRINTS, "llm": "another"}}
    fresh = pretrain("ulvlm", "a", **other)
    kill_after(5, monkeypatch)
    with pytest.raises(Killed):
        pretrain("ulvlm", "b")
    begun: list[int] = []
    monkeypatch.setattr(
        training.AtSteps, "on_step_begin", lambda self, args, state, control, **_: begun.append(state.global_step)
    )
    same(pretrain("ulvlm", "b", **other), fresh)
    assert begun[0] == 0
    assert capsys.readouterr().err.count("made from other settings or inputs") == 1


def test_state_that_was_being_removed_is_never_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill amid the removal leaves parts of checkpoints behind, but not the note that says what they belong to."""
    import prior.state

    folder = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(prior.state.shutil, "rmtree", lambda *_, **__: None)
        with private(folder, learning_rate=1):
            (folder / "checkpoint-2").mkdir()
    assert not (folder / MADE_FROM).exists()
    with private(folder, learning_rate=1):
        assert not (folder / "checkpoint-2").exists()


@pytest.mark.parametrize("trainable", [("projector",), ("projector", "llm")])
def test_tuning_trains_what_the_architecture_says(
    trainable: tuple[str, ...], arch: str, lvlm: Any, records: Any, tokenizer: Any, tmp_path: Path
) -> None:
    lvlm.save(tmp_path / "before")
    parts = config.Architectures.model_validate({arch: {"trainable": trainable}})
    tuning = config.Tune(training=config.Training(learning_rate=1e-2, warmup_ratio=0.0))
    preset = config.Preset(name="test", architectures=parts, tune=tuning)
    asked = tokenize_exchanges(
        ["0", "1"], [[("a star", "red")], [("a star", "blue")]], tokenizer, lambda i: records["image"][i]
    )
    runs.tune(
        config.Run(arch, "ntp", "200", 0), preset, tmp_path / "before", tokenizer, asked, tmp_path / "out",
        tmp_path / "state", PRINTS,
    )  # fmt: skip
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "before", tmp_path / "out/final"))
    moved = {name for name in before if not (before[name] == after[name]).all()}
    projector = {name for name in before if "projector" in name or name == "model.patch_embedding.weight"}
    language = {name for name in before if "layers" in name and "vision" not in name}
    assert projector and language and projector <= moved
    assert (moved == projector) if "llm" not in trainable else (moved >= language)
    assert not any("vision_tower" in name for name in moved)


@pytest.mark.parametrize("cross_fit", [0, 2])
def test_the_log_of_the_reference_tells_relevant_tokens_from_others(
    cross_fit: int, llm: Path, records: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Also beside texts without pictures, whose relevance is unknown."""
    captions = tokenize_captions(records, tokenizer, image=False)
    texts = tokenize_texts(["t0", "t1"], ["a red star", "a square"], tokenizer)
    settings = config.Reference(training=config.Training(row_tokens=10_000), cross_fit=cross_fit)
    train_reference(
        llm, tokenizer, captions, captions, settings, tmp_path / "out", tmp_path / "state", PRINTS, extra=texts
    )
    for k in range(max(cross_fit, 1)):
        (line,) = read_lines(tmp_path / "out" / (f"fold{k}" if cross_fit else "") / "log.jsonl")
        assert line["loss_relevant"] > 0 and line["loss_other"] > 0
        if not cross_fit:
            known = captions.relevant.values
            share = float((known == 1).sum()), float((known == 0).sum())
            total = line["loss"] * line["tokens"] - line["loss_relevant"] * share[0] - line["loss_other"] * share[1]
            assert total > 1, "what remains is the loss of the texts"


def test_adapters_of_the_reference_are_merged(llm: Path, records: Any, tokenizer: Any, tmp_path: Path) -> None:
    """What is written is an ordinary LLM that predicts what the one with adapters did; all but linear layers stayed."""
    captions = tokenize_captions(records, tokenizer, image=False)
    training = config.Training(row_tokens=100, learning_rate=1e-2)
    settings = config.Reference(training=training, lora=config.Lora(rank=4, alpha=8))
    out = tmp_path / "out"
    quality = train_reference(llm, tokenizer, captions, captions, settings, out, tmp_path / "state", PRINTS)
    before, after = (load_file(path / "model.safetensors") for path in (llm, out))
    assert before.keys() == after.keys()
    moved = {name for name in before if not (before[name] == after[name]).all()}
    assert moved == {name for name in before if "proj" in name}
    logprob = score(out, tokenizer, captions, settings)
    assert np.exp(-logprob.mean()) == pytest.approx(quality["all"]["held_out"]["perplexity"], rel=1e-4)
    assert quality["all"]["held_out"]["perplexity"] < np.exp(-score(llm, tokenizer, captions, settings).mean()) * 0.9


def test_the_vision_tower_keeps_its_log(records: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = config.ScratchVision(hidden_size=32, layers=1, heads=2, intermediate_size=32, batch_size=8, epochs=1)
    (tmp_path / "out").mkdir()
    train_vision(tokenize_captions(records, tokenizer), tokenizer, settings, tmp_path / "out", tmp_path / "state")
    assert [line["step"] for line in read_lines(tmp_path / "out/log.jsonl")] == [1, 2, 3]


def test_a_fingerprint_follows_contents_and_names_but_not_times(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    first = fingerprint(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"seconds": 1}')
    assert fingerprint(tmp_path) == first
    (tmp_path / "weights").write_text("2")
    assert fingerprint(tmp_path) != first
    assert fingerprint(tmp_path / "log.jsonl") != fingerprint(tmp_path / "weights")
