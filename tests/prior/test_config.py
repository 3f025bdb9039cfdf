"""Presets: what a user may write, and the one line that answers what he may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from prior.config import PRESETS, Preset, load_preset, parse_tokens
from prior.errors import UserError


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIOR_PHOTOS", "photos")
    preset = load_preset(name)
    assert preset.name == name and len(preset.runs()) == len(set(preset.runs()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes: 3", "'sedes' is not a setting; did you mean 'seeds'"),
        ("pretrain: {learning_rat: 1}", "'pretrain.learning_rat' is not a setting; did you mean 'learning_rate'"),
        ("seeds: many", "seeds: should be a valid integer"),
        ("seeds: 0", "seeds: should be greater than 0"),
        ("pretrain: {warmup_ratio: 2}", "pretrain.warmup_ratio: should be less than or equal to 1"),
        ("scales: [1k, 2k]", "a power-law fit needs at least 3"),
        ("scales: [1k, 2k, lots]", "'lots' is not a number of tokens"),
        ("scales: [4k, 2k, 8k]", "smallest first"),
        ("objectives: {prior: {kind: prior}}", "'ntp' is missing"),
        ("tune: null", "needs a model that was taught to answer"),
        ("corpus: {kind: folder, folder: $NOWHERE_SET}", "environment variable NOWHERE_SET is not set"),
        ("extends: sceens", "did you mean 'scenes'"),
        ("seeds: [", "is not valid YAML"),
        ("- 1", "holds no settings"),
    ],
)
def test_a_mistake_is_answered_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text if "extends" in text or text == "- 1" else f"extends: scenes\n{text}\n")
    with pytest.raises(UserError) as caught:
        load_preset(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'scenes'"):
        load_preset("scens")


def test_extending_overrides_single_fields(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text("extends: scenes\npretrain: {learning_rate: 0.5}\nobjectives: {ntp: {kind: ntp}}\n")
    base, ours = load_preset("scenes"), load_preset(str(path))
    assert ours.pretrain.learning_rate == 0.5
    assert ours.pretrain.model_copy(update={"learning_rate": base.pretrain.learning_rate}) == base.pretrain
    assert list(ours.objectives) == ["ntp"] and ours.corpus == base.corpus


def test_token_counts() -> None:
    assert [parse_tokens(text) for text in ("7000", "40k", "1.5M", "70M")] == [7000, 40_000, 1_500_000, 70_000_000]
    assert Preset(name="x").runs()[0] == "hlvlm/ntp/40k/seed0"
