"""Presets: what a user may write, and the one line that answers what he may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from prior.config import Preset, parse_tokens
from prior.errors import UserError
from prior.presets import PRESETS, load_preset


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIOR_PHOTOS", "photos")
    preset = load_preset(name)
    assert preset.name == name and len(preset.runs()) == len(set(preset.runs()))


FOLDER = "corpus: {kind: folder, folder: pics}"
# What the user writes over `scenes`, and the line that he gets after "preset 'mine': ".
TARS = "corpus: {{kind: webdataset, source: a/b, train: '{}', val: {}}}"
MISTAKES = {
    # keys
    "sedes: 3": "'sedes' is not a setting; did you mean 'seeds'?",
    "folder: /data/pics": "'folder' is not a setting; did you mean 'corpus.folder'?",
    "scenes: 3": "'scenes' is not a setting; did you mean 'seeds'?",
    "xyzzy: 3": "'xyzzy' is not a setting; remove it",
    "name: other": "'name' is not a setting, a preset has the name of its file; remove it",
    "pretrain: {learning_rat: 1}": "'pretrain.learning_rat' is not a setting; did you mean 'pretrain.learning_rate'?",
    "corpus: {kind: folder, foldr: pics}\ntune: null\nbenchmarks: {}": "'corpus.foldr' is not a setting; did you mean "
    "'corpus.folder'?",
    "corpus: {folder: pics}": "'corpus.folder' is a setting of another kind; change 'corpus.kind' or remove it",
    TARS.format("x-{0..3.tar", "v.tar"): "corpus: 'x-{0..3.tar': a brace has no partner; write file names as in "
    "'shard-{0000..0599}.tar' or 'a.tar,b.tar'",
    TARS.format("x-{0..3}.tar", "v.tar, shards: 5"): "corpus: shards: 5 cannot be made of 4 files; ask for fewer",
    TARS.format("x-{0..3}.tar", "x-2.tar"): "corpus: val: x-2.tar is among the training files; hold out another one",
    "corpus: {kind: scnes}": "corpus.kind: should be scenes or folder or webdataset (got scnes)",
    "backbones: {llm: {scrach: {}}}": "'backbones.llm.scrach' is not a setting; did you mean 'backbones.llm.scratch'?",
    "backbones: {llm: {scratch: {head: 2}}}": "'backbones.llm.scratch.head' is not a setting; did you mean "
    "'backbones.llm.scratch.heads'?",
    "benchmarks: {MME: {item: 20}}": "'benchmarks.MME.item' is not a setting; did you mean 'benchmarks.MME.items'?",
    "objectives: {ntp: {kin: ntp}}": "objectives.ntp.kind: is missing; did you mean it by 'kin'?; "
    "objectives.ntp.kin: should be a number (got 'ntp')",
    # types
    "seeds: many": "seeds: should be a whole number (got 'many')",
    "seeds: yes": "seeds: should be a whole number (got True)",
    "seeds_together: 1": "seeds_together: should be true or false (got 1)",
    "pretrain: 3": "pretrain: should hold settings, written as `key: value` (got 3)",
    "backbones: {vision: 3}": "backbones.vision: should be a text (got 3)",
    # ranges
    "seeds: 0": "seeds: should be greater than 0 (got 0)",
    "pretrain: {warmup_ratio: 2}": "pretrain.warmup_ratio: should be less than or equal to 1 (got 2)",
    "pretrain: {learning_rate: .inf}": "pretrain.learning_rate: should be a finite number (got inf)",
    "pretrain: {epochs: .inf}": "pretrain.epochs: should be a finite number (got inf)",
    "corpus: {image_size: 1}": "corpus.image_size: should be greater than or equal to 16 (got 1)",
    "objectives: {ntp: {kind: ntp}, p: {kind: prior, alpha: .nan}}": "objectives.p.alpha: should be a finite number "
    "(got nan)",
    "objectives: {ntp: {kind: ntp}, p: {kind: prior, alpha: -1}}": "objectives.p.alpha: should be greater than or "
    "equal to 0 (got -1)",
    "objectives: {ntp: {kind: ntp}, p q: {kind: prior}}": "objectives.p q: 'p q' cannot be a name; use letters, digits "
    "and . _ + - and begin with a letter or digit",
    "scales: [1k, 2k, lots]": "scales.2: 'lots' is not a number of tokens; write it as 40k, 1.5M or 7000",
    "architectures: {ulvlm: {trainable: []}}": "architectures.ulvlm.trainable: should name at least 1",
    # what must fit together
    "scales: [4k, 2k, 8k]": "scales: list them once each, smallest first",
    "scales: [1M, 2M, 40M]": "scales: 40M caption tokens are more than 12000 captions can hold; raise corpus.train or "
    "lower the scale",
    "objectives: {prior: {kind: prior}}": "objectives: 'ntp' is missing; it is what every other objective is compared "
    "with",
    "objectives: {ntp: {kind: prior}}": "objectives.ntp.kind: should be ntp, with which every other objective is "
    "compared (got 'prior'); give this objective another name",
    FOLDER: "tune: questions are made for `corpus.kind: scenes` only; write `tune: null`, or name conversations",
    "backbones: {llm: {scratch: {hidden_size: 65}}}": "backbones.llm.scratch: hidden_size 65 does not give 4 heads an "
    "even width each; make it a multiple of 8",
    "backbones: {vision: {scratch: {hidden_size: 65}}}": "backbones.vision.scratch: hidden_size 65 does not divide "
    "into 4 heads; make it a multiple of 4",
    "backbones: {vision: {scratch: {image_size: 50}}}": "backbones.vision.scratch: image_size 50 is not a multiple of "
    "patch_size 16; make it one",
    "architectures: {ulvlm: {max_side: 50}}": "architectures.ulvlm: max_side 50 is not a multiple of patch_size 16; "
    "make it one",
    "architectures: {hlvlm: {vision_feature_layer: -9}}": "architectures.hlvlm.vision_feature_layer: the vision tower "
    "has 3 layers; choose from -4 to 3 (got -9)",
    "backbones: {llm: org/name}": "tokenizer: an LLM that is fetched knows only its own tokens; write `tokenizer: "
    "org/name`",
    "backbones: {llm: ./nowhere}\ntokenizer: ./nowhere": "tokenizer: there is no folder './nowhere'; give one that "
    "exists, or a hub id such as organisation/name; backbones.llm: there is no folder './nowhere'; give one that "
    "exists, or a hub id such as organisation/name",
    "corpus: {kind: folder, folder: $NOWHERE_SET}": "corpus.folder: the environment variable NOWHERE_SET is not set; "
    "export it as the path of your folder",
    # YAML
    "seeds: 1\ntune:\n  seed: 1\n  seed: 2": "mine.yaml line 5 gives 'seed' a second time; keep one",
    "seeds: [": "mine.yaml line 3 is not valid YAML; mend its indentation or quotes",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_answered_in_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(f"extends: scenes\n{text}\n")
    with pytest.raises(UserError) as caught:
        load_preset("mine.yaml")
    assert str(caught.value) == f"preset 'mine': {MISTAKES[text]}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"extends: sceens", "there is no file .*; did you mean 'scenes'?"),
        (b"- 1", "mine.yaml holds no settings"),
        (b"seeds: \xff", "mine.yaml is not UTF-8 text"),
        (b"extends: mine.yaml", "'extends' leads back to itself"),
    ],
)
def test_a_file_that_is_no_preset(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_preset("mine.yaml")


def test_what_stays_possible(tmp_path: Path) -> None:
    """A hub id with its tokenizer, a folder that is there, 2e-3 as YAML 1.2 has it, and another tower's layers."""
    (tmp_path / "mine.yaml").write_text(
        f"backbones: {{llm: org/name, vision: {tmp_path}}}\ntokenizer: org/name\npretrain: {{learning_rate: 2e-3}}\n"
        "architectures: {hlvlm: {vision_feature_layer: -9, trainable: [vision]}}\n"
    )
    preset = load_preset(str(tmp_path / "mine.yaml"))
    assert preset.backbones.llm == preset.tokenizer == "org/name"
    assert preset.backbones.vision == str(tmp_path) and preset.pretrain.learning_rate == 0.002


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
