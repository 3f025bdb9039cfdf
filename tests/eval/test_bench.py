"""The measurements of speed and memory: what is counted, what is compared, and a miniature from end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eval.bench import flops, sizes
from eval.bench.compare import Line, check, races, summary
from prior.errors import UserError

TINY = sizes.SIZES["tiny"][0]


def test_operations_are_those_that_torch_counts() -> None:
    """One document, whose attention torch counts as a full square; the tower's last layer but one is used."""
    lvlm = sizes.build(TINY)
    model = lvlm.model
    model.set_attn_implementation("eager")
    (picture,) = sizes.documents(TINY, 1).pictures(lvlm, [0])
    ids = torch.tensor([[sizes.BOS, *picture.ids, 7, 8, 9, 10]])
    keep = torch.arange(ids.shape[1])[None] >= len(picture.ids)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, pixel_values=lvlm.collate([picture]), logits_to_keep=keep).logits.sum().backward()
    tokens = ids.shape[1]
    needed = flops.training_step(model.config, tokens, tokens**2, int(keep.sum()), 1)
    vision = model.config.vision_config
    seen = TINY.image_tokens + 1
    unused = 2 * (seen * (4 * 32**2 + 2 * 32 * vision.intermediate_size) + 2 * 32 * seen**2)
    assert needed + unused == counter.get_total_flops()


def test_pairs_are_those_of_a_causal_mask() -> None:
    lengths = [1, 4, 7]
    assert flops.causal_pairs(lengths) == sum(int(torch.ones(n, n).tril().sum()) for n in lengths)


def test_cal_weights_worked_by_hand() -> None:
    """Clipped to 1 … 5, averaged over neighbours, never over the border of two captions."""
    from eval.bench.cal import cal_weights

    gain = torch.tensor([0.0, 3.0, 9.0, 4.0, 2.0, -7.0])
    caption = torch.tensor([0, 0, 0, 1, 1, 2])
    expected = [(1 + 3) / 2, (1 + 3 + 5) / 3, (3 + 5) / 2, (4 + 2) / 2, (4 + 2) / 2, 1.0]
    assert cal_weights(gain, caption).tolist() == pytest.approx(expected)


def test_cal_masks_pictures_and_nothing_else() -> None:
    """Against a dense mask over one document, the rest of the model being transformers' own."""
    from eval.bench.cal import NAME
    from prior.models.attention import language_model, pack
    from prior.packing import Packer, model_inputs

    lvlm = sizes.build(TINY)
    packer = Packer(sizes.documents(TINY, 3), sizes.BOS, lvlm)
    pack(lvlm.model)
    language_model(lvlm.model).set_attn_implementation(NAME)
    row = packer.row([0, 1, 2])
    with torch.no_grad():
        packed = lvlm.model(**model_inputs(row), is_picture=row["is_picture"], use_cache=False).logits
        language_model(lvlm.model).set_attn_implementation("eager")
        for caption in range(3):
            alone = packer.row([caption])
            hidden = alone["is_picture"][0]
            seen = torch.ones(len(hidden), len(hidden)).tril().bool() & ~hidden
            given: dict[str, Any] = {name: alone[name] for name in ("input_ids", "pixel_values", "logits_to_keep")}
            mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
            expected = lvlm.model(**given, attention_mask=mask, use_cache=False).logits
            torch.testing.assert_close(packed[row["caption_index"] == caption], expected, rtol=1e-4, atol=1e-5)


def test_a_line_is_the_median_of_the_ratios_of_rounds() -> None:
    """Not the ratio of medians; the first round is not counted."""
    ours, theirs = [100.0, 1.0, 2.0, 10.0], [1.0, 4.0, 2.0, 30.0]
    rows = pd.DataFrame(
        {"round": place, "side": side, "seconds": value}
        for side, values in (("ours", ours), ("stock", theirs))
        for place, value in enumerate(values)
    )
    line = Line("step", "theirs", "seconds", "ours", "stock", "<= 0.34")
    found = summary(rows, line)
    assert (found["ratio"], found["low"], found["high"]) == pytest.approx((1 / 3, 0.25, 1.0))
    assert (found["ours"], found["theirs"], found["rounds"]) == (2.0, 4.0, 3)
    assert found["met"] and not line.met(0.35)
    assert not Line("speed", "theirs", "seconds", "ours", "stock", ">= 2").met(1.99)
    assert summary(rows, Line("step", "", "seconds", "ours", None, "<= 2"))["ratio"] == 2.0


@pytest.mark.parametrize("machine", list(sizes.SIZES))
def test_every_line_is_there_for_every_kind_of_machine(machine: str) -> None:
    lines = [(line.measured, line.over) for race in races(machine) for line in race.lines]
    assert len(lines) == 14
    small, large = sizes.SIZES[machine]
    assert small.vocabulary < large.vocabulary
    assert [line.goal for race in races(machine) for line in race.lines if "tokens/s" in line.measured] == [
        ">= 2",
        ">= 3",
        ">= 3",
        ">= 3",
    ]


def test_a_miniature_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes, equal losses, files. It would have ended in an error had the losses differed."""
    captions = tmp_path / "own" / "captions.csv"
    captions.parent.mkdir()
    captions.write_text("image,caption\n" + "".join(f"{n}.jpg,a dog {'runs ' * (n % 7)}.\n" for n in range(40)))
    monkeypatch.setenv("PRIOR_PHOTOS", str(captions.parent))
    out = tmp_path / "bench"
    chosen = ("training-500", "objectives-300", "scoring-300")
    call = [sys.executable, "-m", "eval.bench", "method", "--machine", "tiny", "--rounds", "2", "--threads", "1"]
    call += ["--out", str(out), *(part for name in chosen for part in ("--only", name))]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out / "bench.csv")
    assert list(table.race) == ["training-500"] * 3 + ["objectives-300"] * 2 + ["scoring-300"] * 2
    columns = ["measured", "against", "ratio", "low", "high", "goal", "met", "machine", "unit", "ours", "theirs"]
    assert set(columns) <= set(table.columns)
    assert (table.low <= table.ratio).all() and (table.ratio <= table.high).all()
    assert set(table.captions_from) == {"own"} and set(table.rounds) == {2}
    for name in chosen:
        rounds = pd.read_csv(out / f"{name}.csv")
        assert sorted(set(rounds["round"])) == [0, 1, 2]
        assert (rounds[["seconds", "tokens", "peak", "loss"]] > 0).all(axis=None)
        assert rounds.groupby("round").tokens.nunique().max() == 1
    trained = pd.read_csv(out / "training-500.csv").pivot(index="round", columns="side", values="loss")
    assert trained.ours.to_list() == pytest.approx(trained.stock.to_list(), rel=1e-5)
    assert trained.ours.is_monotonic_decreasing
    assert "| training step, PRIOR | CAL | 300 |" in (out / "bench.md").read_text()


def test_a_profile_names_operators_and_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.bench.profile import profile

    monkeypatch.delenv("PRIOR_PHOTOS", raising=False)
    profile("300", "ntp", 1, tmp_path)
    first, needed, _, _, *operators = (tmp_path / "profile_300_ntp.txt").read_text().splitlines()
    assert first.startswith("300, ntp: ") and "operations of matrix products" in needed
    assert any(line.endswith(" aten::mm") for line in operators)
    with pytest.raises(UserError, match="no size of that name"):
        profile("301", "ntp", 1, tmp_path)


def test_sides_that_differ_are_not_timed() -> None:
    """All losses count where the same is trained, else the first, which comes before any training."""
    found = {race.name: race for race in races("tiny")}
    alike = {"ours": {"losses": [2.0, 1.0]}, "stock": {"losses": [2.0001, 1.0001]}}
    later = {"ours": {"losses": [2.0, 1.0]}, "stock": {"losses": [2.0, 1.01]}}
    check(found["training-300"], alike)
    check(found["objectives-300"], later)
    with pytest.raises(RuntimeError, match="training-300: ours and stock do not get the same losses"):
        check(found["training-300"], later)


@pytest.mark.parametrize(("content", "expected"), [(None, "there is no file"), ("image,text\n", "no column `caption`")])
def test_captions_that_cannot_be_read_are_refused(
    content: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "captions.csv").write_text(content)
    monkeypatch.setenv("PRIOR_PHOTOS", str(tmp_path))
    with pytest.raises(UserError, match=expected):
        sizes.captions()
