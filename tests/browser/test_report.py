"""The report page in a browser: it fits, it is quiet, it asks nobody, and links open what they lead to."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.report import write_report
from tests.browser.devtools import Browser
from tests.eval import reported

# Elements that stick out of the window although no box of their own scrolls them.
OUTSIDE = """[...document.querySelectorAll('main *, header *, nav *')].filter(e =>
  !e.closest('.scroll') && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1
).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    known, preset = reported.study()
    results = reported.results(tmp_path_factory.mktemp("results"), known)
    write_report(known, preset, results, results / "report.html")
    return results / "report.html"


@pytest.mark.parametrize("width", [1280, 400])
def test_fits_and_loads_nothing(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(OUTSIDE) == []
    assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
    # The style is allowed by its digest: without it the page would be Times on white.
    assert browser.run("getComputedStyle(document.querySelector('.verdict')).borderRadius") == "16px"
    assert browser.problems == []
    assert [address for address in browser.requests if not address.startswith("data:")] == [page.resolve().as_uri()]


def test_wide_tables_scroll_in_their_own_box_and_by_keys(browser: Browser, page: Path) -> None:
    browser.open(page, 400)
    box = "document.querySelector('#losses .scroll table').parentElement"
    assert browser.run(f"{box}.scrollWidth > {box}.clientWidth")
    browser.run(f"{box}.focus()")
    assert browser.run(f"document.activeElement === {box}")
    browser.press("ArrowRight")
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run(f"{box}.scrollLeft") > 0


def test_an_arm_leads_to_its_runs(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click('#losses a[href="#arm-hlvlm-prior"]')
    arm = "document.querySelector(':target')"
    assert browser.run(f"{arm}.id") == "arm-hlvlm-prior"
    browser.click("#arm-hlvlm-prior > summary")
    assert browser.run(f"{arm}.open")


def test_verdicts_differ_by_more_than_colour(browser: Browser, page: Path) -> None:
    browser.open(page)
    marks = browser.run("[...document.querySelectorAll('.tally .verdict')].map(part => part.innerText)")
    assert len({mark.split()[0] for mark in marks}) == len(marks) == 4
