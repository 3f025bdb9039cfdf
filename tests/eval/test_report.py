"""The report page: everything is on it, every number leads to its runs, nothing on it is code."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from docutils.utils import SystemMessage

from eval import report
from eval.outcomes import OUTCOMES
from eval.report import origin, prose
from eval.report.cells import read_tables
from prior.config import Preset
from prior.errors import UserError
from tests.eval import reported

EVIL = "<script>document.title='x'</script>\"'&"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    known, preset = reported.study()
    return report.render(known, preset, reported.results(tmp_path_factory.mktemp("results"), known))


def test_every_result_and_claim_is_there_with_its_caption(page: str) -> None:
    for name, heading in OUTCOMES.items():
        article = page.split(f'<article id="{name}">')[1].split("</article>")[0]
        assert heading.title in article
        assert prose.caption(name).split("</p>")[0] in article
        assert ("data:image/png" in article) == (heading.figure and name != reported.ABSENT)
    assert "nothing was measured" in page
    rows = re.findall(r'<tr><th scope="row">(Claim \d.*?)</tr>', page, re.S)
    assert len(rows) == len(reported.VERDICTS)
    for row, verdict in zip(rows, ("shown", "not shown", "contradicted", "not testable"), strict=True):
        assert f"</b> {verdict}</span>" in row
    assert "−1.61" in rows[0] and "[−3.20, 0.10]" in rows[0] and "Holm 0.31" in rows[0] and "+19" in rows[0]
    assert "0.084" in rows[1] and "&lt; 0.0001" in rows[1]
    assert "one seed" in rows[3] and 'data-label="here"></td>' in rows[3]
    led = [re.findall(r'href="#arm-([^"]+)" title="(\d runs: [^;]+)', row) for row in rows]
    assert led[0] == [(f"hlvlm-{key}", f"2 runs: runs/hlvlm/{key}/120k/seed0–1") for key in ("ntp", "prior")]
    assert led[1] == [(f"{arch}-ntp", f"4 runs: runs/{arch}/ntp/{{40k,120k}}/seed0–1") for arch in ("hlvlm", "ulvlm")]
    assert led[2] == led[3] == []


def test_a_row_leads_to_its_own_runs(page: str) -> None:
    """The tables are of the largest scale, so that the runs of the other one are not behind them."""
    says = (
        'href="#arm-hlvlm-prior" title="2 runs: runs/hlvlm/prior/120k/seed0–1; commit 0123456789ab; settings pretrain '
    )
    assert says in page and 'id="arm-hlvlm-prior"' in page
    assert "Made from 8 runs of 4 arms" in page and "16 runs, by arm" in page
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page, target


def test_cells_lead_to_the_arms_that_they_are_of() -> None:
    known = origin.origins(reported.study()[0])

    def led(row: list[str], columns: list[str]) -> list[tuple[int, str, str]]:
        found = report._arms(row, columns, known, {"ntp": 0.0, "prior": 1.0})
        return [(place, arm.arch, arm.objective) for place, arm in found]

    assert led(["U-LVLM", "0 (NTP)", "12.1"], ["", "α", "MME"]) == [(1, "ulvlm", "ntp")]
    assert led(["U-LVLM", "4", "12.1"], ["", "α", "MME"]) == []
    assert led(["U-LVLM", "1", "0"], ["", "more", "α"]) == [(2, "ulvlm", "ntp")]
    head = ["", "quantity", "NTP", "PRIOR", "PRIOR / NTP"]
    assert led(["H-LVLM", "loss", "1.2", "1.1", "0.9"], head) == [(2, "hlvlm", "ntp"), (3, "hlvlm", "prior")]
    assert led(["H-LVLM", "loss", "1.2", "", ""], head) == [(2, "hlvlm", "ntp")]


def test_runs_show_what_is_their_own(page: str) -> None:
    runs = page.split('id="arm-ulvlm-ntp"')[1].split("</details>")[0]
    for scale, seed in (("40k", 0), ("40k", 1), ("120k", 0), ("120k", 1)):
        row = runs.split(f'id="ulvlm/ntp/{scale}/seed{seed}/pretrain"')[1].split("</tr>")[0]
        assert re.findall(r"<td>(.*?)</td>", row) == [str(60 + seed), str(700 + seed)]
    assert "settings.objective.kind" in runs and "settings.training.epochs" not in runs
    assert "settings.training.epochs" in page


def test_markup_in_what_is_shown_stays_text(tmp_path: Path) -> None:
    known, preset = reported.study(f"x{EVIL}", dirty=EVIL)
    captions = tmp_path / "captions"
    captions.mkdir()
    for name in (*OUTCOMES, "claims"):
        (captions / f"{name}.rst").write_text(f"*Caption* {EVIL}", encoding="utf-8")
    page = report.render(known, preset, reported.results(tmp_path / "results", known, EVIL), captions)
    assert "<em>Caption</em>" in page
    assert "<script" not in page and page.count("&lt;script&gt;") > 50


def test_captions_may_not_load_or_inject() -> None:
    for directive in (".. raw:: html\n\n   <script></script>", ".. include:: /etc/hostname", "An *open end"):
        with pytest.raises(SystemMessage):
            prose.html(directive)


def test_same_inputs_same_bytes_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        known, preset = reported.study()
        results = reported.results(tmp_path / folder, known)
        report.write_report(known, preset, results, results / "report.html")
    first, second = ((tmp_path / folder / "report.html").read_bytes() for folder in ("first", "second"))
    assert first == second
    assert set(re.findall(rb'(?:src|href)="((?:https?:)?//[^"]*)"', first)) == {b"https://arxiv.org/abs/2505.08971"}
    assert b"default-src 'none'" in first and b"<script" not in first


def test_it_says_what_it_does_not_know(tmp_path: Path) -> None:
    known, preset = reported.study(dirty="-dirty")
    results = reported.results(tmp_path, known)
    assert "had changes that were not committed" in report.render(known, preset, results)
    for name in list(known.provenance)[:3]:
        del known.provenance[name]
    assert "Not known of 3 runs" in report.render(known, preset, results)
    known.provenance.clear()
    page = report.render(known, preset, results)
    assert "Not known of 16 runs" in page and "not stored" in page
    (results / "tables/losses.html").unlink()
    with pytest.raises(UserError, match="losses.html: no such file"):
        report.render(known, preset, results)


def test_a_claim_without_a_known_verdict_is_refused(tmp_path: Path) -> None:
    known, preset = reported.study()
    results = reported.results(tmp_path, known)
    claims = pd.read_csv(results / "claims.csv").assign(verdict="probably")
    claims.to_csv(results / "claims.csv", index=False)
    with pytest.raises(UserError, match="'probably' is no verdict"):
        report.render(known, preset, results)


def test_tables_are_read_back_as_they_were_shown() -> None:
    from eval import display

    cells = pd.DataFrame({"": ["a & b", "<i>"], "α ≥ 1": ["", "−1 ± 2"]})
    (table,) = read_tables(display.html([display.Display("Title <1>", cells, "Note & more.")]))
    assert (table.title, table.columns, table.note) == ("Title <1>", ["", "α ≥ 1"], "Note & more.")
    assert table.rows == cells.to_numpy().tolist()


def test_seeds_in_words() -> None:
    assert origin.ranges([4, 0, 1, 2, 7]) == "0–2,4,7"


def test_provenance_gathers_every_run(tmp_path: Path) -> None:
    preset: Preset = reported.load_preset("tiny")
    names = [f"runs/{run}/{stage}" for run in preset.runs() for stage in preset.stages]
    for number, name in enumerate(names):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.yaml").write_text(yaml.safe_dump({"seed": number}), encoding="utf-8")
    assert origin.gather(tmp_path, preset) == {name: {"seed": number} for number, name in enumerate(names)}
    (tmp_path / names[-1] / "run.yaml").unlink()
    with pytest.raises(UserError, match=re.escape(names[-1])):
        origin.gather(tmp_path, preset)
