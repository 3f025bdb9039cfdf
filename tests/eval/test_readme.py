"""The README: what is inserted into it is up to date, what it shows works, what it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.readme import main, render, stale
from prior import weighting
from prior.errors import UserError
from prior.presets import PRESETS, load_preset

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FILES = {"a.md": "| a |\n| --- |\n| 1 |\n", "b/c.md": "text"}
TEXT = (
    "Top\n\n<!-- insert: a.md -->\n<!-- end -->\nmiddle <!-- end --> of a line\n"
    "<!-- insert: b/c.md -->\nold\n<!-- end -->\n"
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "page.md").write_text(TEXT)
    return tmp_path / "page.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the README in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_blocks_are_filled_and_nothing_else_changes() -> None:
    assert render(TEXT, FILES.__getitem__) == (
        "Top\n\n<!-- insert: a.md -->\n\n| a |\n| --- |\n| 1 |\n\n<!-- end -->\nmiddle <!-- end --> of a line\n"
        "<!-- insert: b/c.md -->\n\ntext\n\n<!-- end -->\n"
    )


LINES = st.lists(st.sampled_from(["", "| 1 | 2 |", "words", "<!-- end --> here", "# Title"]), max_size=5).map("\n".join)


@given(LINES, LINES, LINES, LINES)
def test_rendering_is_idempotent_and_leaves_nothing_stale(before: str, old: str, after: str, content: str) -> None:
    text = f"{before}\n<!-- insert: x -->\n{old}\n<!-- end -->\n{after}"
    once = render(text, lambda _: content)
    assert render(once, lambda _: content) == once
    assert stale(once, lambda _: content) == []
    assert stale(once, lambda _: content + "more") == ["x"]
    assert once.startswith(f"{before}\n<!-- insert: x -->") and once.endswith(f"<!-- end -->\n{after}")


@pytest.mark.parametrize(
    "text", ["<!-- insert: x -->\n", "<!-- end -->\n", "<!-- insert: x -->\n" * 2 + "<!-- end -->\n"]
)
def test_a_mark_without_its_partner_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no partner"):
        render(text, lambda _: "")


def test_the_command_checks_mends_and_names_what_is_missing(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(page)]) == 1 and page.read_text() == TEXT
    assert "out of date: a.md, b/c.md;" in capsys.readouterr().err
    assert main([str(page)]) == 0 and main(["--check", str(page)]) == 0
    (page.parent / "a.md").write_text("new")
    assert main(["--check", str(page)]) == 1
    assert "out of date: a.md;" in capsys.readouterr().err
    (page.parent / "a.md").unlink()
    assert main([str(page)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no file 'a.md'" in said and "Traceback" not in said


def test_the_readme_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(README)]) == 0, capsys.readouterr().err


def test_what_the_readme_points_to_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local and not [target for target in local if not (ROOT / target).exists()]


def test_its_table_of_presets_agrees_with_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIOR_PHOTOS", "/photographs")
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| (.+) \| (\d+) \| (\d+) \| (.+) \|$", README.read_text("utf-8"), re.MULTILINE
    )
    presets = {path.stem: load_preset(path.stem) for path in PRESETS.glob("*.yaml")}
    told = {name: (scales.split(" · "), int(seeds), int(runs)) for name, scales, seeds, runs, _ in rows}
    assert told == {name: (preset.scales, preset.seeds, len(preset.runs())) for name, preset in presets.items()}
    times = {name: time for name, *_, time in rows}
    for costs in (README.parent / "results/published").glob("*/costs.csv"):
        minutes = pd.read_csv(costs).cpu_seconds.sum() / 60
        assert times[costs.parent.name] == f"{minutes:.0f} min", costs


def test_its_presets_and_objectives_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objective that it shows is registered, and every preset that it shows loads, objectives included."""
    monkeypatch.setenv("PRIOR_PHOTOS", str(tmp_path))
    monkeypatch.setattr(weighting, "REGISTRY", dict(weighting.REGISTRY))
    known = set(weighting.REGISTRY)
    for block in blocks("python"):
        if "@objective" in block:
            exec(block, vars(weighting).copy())
    (new,) = set(weighting.REGISTRY) - known
    entry = weighting.REGISTRY[new]
    nll, caption = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0, 0, 1])
    scores = torch.tensor([0.5, 0.25, 0.9]).log() if entry.needs_scores else None
    context = weighting.Context(nll, caption, caption, scores, torch.full((3,), torch.nan), lambda: nll + 1)
    # One nat of help from the picture: twice PRIOR's weights, 2·(0.5, 0.75)·2/1.25 and 2·1.
    torch.testing.assert_close(entry.function(context), torch.tensor([1.6, 2.4, 2.0]))
    assert len(blocks("yaml")) >= 3
    for number, block in enumerate(blocks("yaml")):
        path = tmp_path / f"shown{number}.yaml"
        path.write_text(block)
        for name, entry in load_preset(str(path)).objectives.items():
            weighting.check_objective(name, entry.kind, entry.parameters())
