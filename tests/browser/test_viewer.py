"""The token viewer in a real browser: what it computes, how it is used, and that it asks for nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.viewer.page import write_page
from prior.weighting import prior_weights
from tests.browser.devtools import Browser

HOSTILE = ["</script><script>hacked=1</script>", " <img src=x onerror=hacked=1>", " &amp; <b>bold</b>"]
WORDS = [[" red", " circle", " on", " a", " tall", " stool", " by", " Norta", " 19", "95"], HOSTILE, ["sold", " out"]]


def picture(seed: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 48, 3), np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def reply(text: str, correct: bool) -> dict[str, Any]:
    return {"text": text, "read": text, "correct": correct}


def asked(ntp: bool, prior: bool) -> dict[str, Any]:
    """A question that the arms of H-LVLM answer rightly or not, and those of U-LVLM never."""
    told = {"ntp": reply("Yes" if ntp else "No", ntp), "prior": reply("Yes" if prior else "No", prior)}
    replies = {"hlvlm": told, "ulvlm": {key: reply("No", False) for key in told}}
    common = {"benchmark": "POPE", "kind": "pope", "category": "popular", "options": {}, "answer": "Yes"}
    return {**common, "text": "Is there a red circle? <i>", "replies": replies}


def content() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    cards = []
    for number in range(8):
        text = [word for word in WORDS[number % 3] for _ in range(1 + number // 3)]
        size = len(text) + 1
        logprob = -rng.exponential(1.5, size).astype(np.float32)
        truth: list[int | None] = [int(value) for value in rng.random(size) < 0.4]
        truth[0], truth[-1] = 1, 0
        # One caption that the reference LLM is certain of, one of which nobody knows what the picture decides.
        logprob = np.zeros(size, np.float32) if number == 3 else logprob
        truth = [None] * size if number == 4 else truth
        mi = {
            arch: {key: rng.normal(0.4, 2, size).round(4).tolist() for key in ("ntp", "prior")}
            for arch in ("hlvlm", "ulvlm")
        }
        kind = None if number % 3 else ["number" if value and value > 0 else "name" for value in truth]
        tokens = {
            "text": [*text, None],
            "logprob": [float(str(value)) for value in logprob],
            "truth": truth,
            "kind": kind,
            "mi": mi,
        }
        questions = [[], [asked(True, False)], [asked(True, True)], [asked(False, False)]][number % 4]
        entry = {"id": f"val-{number}", "image": picture(number), "side": 48, "caption": "".join(text)}
        cards.append({**entry, "tokens": tokens, "questions": questions})
    plain = {"id": "MME · 17", "image": picture(9), "side": 48, "caption": None, "tokens": None}
    cards.append({**plain, "questions": [asked(False, True)]})
    return {
        "preset": "imagined",
        "archs": [{"key": "hlvlm", "name": "H-LVLM"}, {"key": "ulvlm", "name": "U-LVLM"}],
        "objectives": [{"key": "ntp", "name": "NTP"}, {"key": "prior", "name": "PRIOR"}],
        "run": {"scale": "40k", "seed": 0},
        "held_out": 60,
        "cards": cards,
    }


DATA = content()
SCORED = [card for card in DATA["cards"] if card["tokens"]]


@pytest.fixture(params=[1280, 400])
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewer") / "viewer.html"
    write_page(DATA, path)
    return path


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Browser]:
    """The page anew; whatever a test does there, nothing is complained of and nothing is asked of a network."""
    browser.open(file)
    yield browser
    assert browser.problems == []
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}
    assert [address for address in browser.requests if address.startswith("file")] == [file.resolve().as_uri()]


def expected(alpha: float) -> list[torch.Tensor]:
    """The weights of every scored caption as training computes them."""
    sizes = [len(card["tokens"]["logprob"]) for card in SCORED]
    flat = torch.tensor([value for card in SCORED for value in card["tokens"]["logprob"]])
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return list(prior_weights(flat, owner, alpha).split(sizes))


def slide(page: Browser, alpha: float) -> None:
    """Move the slider as a keyboard does."""
    page.run("document.getElementById('alpha').focus()")
    page.press("Home", *["ArrowRight"] * round(10 * alpha))


def set_value(page: Browser, name: str, value: str) -> None:
    page.run(
        f"(() => {{ const e = document.getElementById('{name}'); e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def each(page: Browser, selector: str, value: str) -> list[Any]:
    """What a JavaScript expression of ``e`` gives for every element that a CSS selector finds."""
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {value})")


def shown(page: Browser) -> list[str]:
    """The pictures that are seen, from top to bottom."""
    return each(page, ".card:not([hidden])", "e.querySelector('h2').textContent")


def focused(page: Browser) -> str:
    """The picture that has the focus, or whose token has it."""
    return page.run("document.activeElement.closest('.card')?.querySelector('h2').textContent ?? ''")


def text(page: Browser, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.7, 4.0])
def test_the_slider_gives_the_weights_of_training(page: Browser, alpha: float) -> None:
    slide(page, alpha)
    assert text(page, "#alpha-value") == f"{alpha:.1f}"
    found = each(page, ".card", "[...e.querySelectorAll('.token')].map(t => Number(t.dataset.weight))")
    for weights, wanted in zip(found, expected(alpha), strict=False):
        assert weights == pytest.approx(wanted.tolist(), rel=1e-6, abs=1e-6)
    assert all(weight == 1 for weights in found for weight in weights) == (alpha == 0)
    assert set(found[3]) == {1}


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_captions_are_sorted_by_disagreement(page: Browser, alpha: float) -> None:
    slide(page, alpha)
    gaps = {}
    for card, weights in zip(SCORED, expected(alpha), strict=True):
        truth = card["tokens"]["truth"]
        if None not in truth:
            target = torch.tensor(truth) / sum(truth)
            gaps[card["id"]] = float((weights / weights.sum() - target).clamp(min=0).sum())
    set_value(page, "sort", "disagreement")
    wanted = sorted(gaps, key=lambda key: -gaps[key])
    assert shown(page)[: len(wanted)] == wanted and len(shown(page)) == len(DATA["cards"])
    said = float(re.findall(r"([\d.]+) disagreement", text(page, ".card .facts"))[0])
    assert said == pytest.approx(gaps[wanted[0]], abs=0.006)
    set_value(page, "sort", "mi")
    totals = {card["id"]: sum(card["tokens"]["mi"]["hlvlm"]["prior"]) for card in SCORED}
    assert shown(page)[:-1] == sorted(totals, key=lambda key: -totals[key])


def test_colours_follow_the_mode_and_text_stands_out_from_them(page: Browser) -> None:
    colours = {}
    for key, mode in enumerate(("weight", "p", "truth", "mi"), start=1):
        page.press(str(key))
        assert page.run("document.querySelector('input[name=mode]:checked').value") == mode
        colours[mode] = each(page, ".token", "[getComputedStyle(e).backgroundColor, getComputedStyle(e).color]")
        for pair in {tuple(pair) for pair in colours[mode]}:
            assert contrast(*pair) >= 4.5, (mode, pair)
        weight = each(page, ".token.decided", "getComputedStyle(e).fontWeight")
        assert set(weight) == {"700" if mode == "truth" else "400"}
    truth = [value for card in SCORED for value in card["tokens"]["truth"]]
    gain = [value for card in SCORED for value in card["tokens"]["mi"]["hlvlm"]["prior"]]
    assert len({tuple(pair) for pair, value in zip(colours["truth"], truth, strict=True) if value == 1}) == 1
    # Light to dark is the order of the weights, and of both sides of zero.
    order = [value for weights in expected(1) for value in weights.tolist()]
    assert sorted_by(order, [lightness(pair[0]) for pair in colours["weight"]])
    assert sorted_by(
        [abs(value) for value in gain if value < 0],
        [lightness(pair[0]) for pair, value in zip(colours["mi"], gain, strict=True) if value < 0],
    )
    # Colour is never alone: what the picture decides is underlined, what it makes less likely has a dashed frame.
    style = "(({textDecorationLine: line, textDecorationStyle: form, outlineStyle: frame}) => [line, form, frame])"
    marks = each(page, ".token", f"{style}(getComputedStyle(e))")
    assert [mark[0] == "underline" and mark[1] == "solid" for mark in marks] == [value == 1 for value in truth]
    assert [mark[2] == "dashed" for mark in marks] == [value < -0.05 for value in gain]


def test_filters_leave_what_passes_and_say_when_nothing_does(page: Browser) -> None:
    everything = shown(page)
    assert everything == [card["id"] for card in DATA["cards"]]
    set_value(page, "answers", "differ")
    assert shown(page) == ["val-1", "val-5", "MME · 17"]
    assert "3 of 9 pictures" in text(page, "#summary") and "NTP 2 of 3, PRIOR 1 of 3" in text(page, "#summary")
    set_value(page, "answers", "wrong")
    assert shown(page) == ["val-1", "val-3", "val-5", "val-7", "MME · 17"]
    # The other architecture is always wrong, so that nothing differs.
    page.press("a")
    assert page.run("document.querySelector('input[name=arch]:checked').value") == "ulvlm"
    set_value(page, "answers", "differ")
    assert shown(page) == [] and page.run("document.getElementById('none').offsetHeight") > 0
    page.click("#reset")
    assert shown(page) == everything
    set_value(page, "kinds", "number")
    assert shown(page) == [card["id"] for card in SCORED if "number" in (card["tokens"]["kind"] or [])]
    set_value(page, "kinds", "all")
    page.press("/", *"sold")
    assert shown(page) == ["val-2", "val-5"] and focused(page) == ""
    # Letters that are keys elsewhere are words here.
    page.press("Escape", "j", "j")
    assert focused(page) == "val-5"


def test_keys_lead_through_pictures_and_tokens(page: Browser) -> None:
    page.press("j")
    assert focused(page) == "val-0"
    page.press("j", "ArrowDown", "k")
    assert focused(page) == "val-1"
    page.press("ArrowUp", "ArrowUp", "ArrowRight", "ArrowRight")
    assert page.run("document.activeElement.textContent") == "circle"
    tokens = SCORED[0]["tokens"]
    said = text(page, "#status")
    assert "“circle”" in said and f"{np.exp(tokens['logprob'][1]):.3g}" in said
    assert f"{expected(1)[0][1]:.3f}" in said
    assert f"PRIOR {tokens['mi']['hlvlm']['prior'][1]:+.2f}".replace("-", "−") in said
    page.press("]", "]", "[")
    assert text(page, "#alpha-value") == "1.1" and f"{expected(1.1)[0][1]:.3f}" in text(page, "#status")
    # The focus stays on its token when its card takes another place.
    page.run("document.getElementById('sort').value = 'disagreement'")
    page.press("]")
    assert page.run("document.activeElement.textContent") == "circle" and focused(page) == "val-0"
    page.press("?")
    assert page.run("document.getElementById('keys').open")
    page.press("j", "Escape")
    assert not page.run("document.getElementById('keys').open") and focused(page) == "val-0"


def test_captions_and_questions_never_become_markup(page: Browser) -> None:
    assert page.run("typeof hacked") == "undefined"
    assert page.run("document.querySelectorAll('.caption script, .caption img, .caption b, .questions i').length") == 0
    captions = page.run("[...document.querySelectorAll('.card')].map(c => c.querySelector('.caption').textContent)")
    wanted = [
        card["caption"] + "end" if card["tokens"] else "The caption of this picture is not stored."
        for card in DATA["cards"]
    ]
    assert captions == wanted


def test_nothing_is_wider_than_the_window(page: Browser, file: Path, width: int) -> None:
    page.open(file, width)
    for mode in "1234":
        page.press(mode)
        inner, needed = page.run("(e => [e.clientWidth, e.scrollWidth])(document.documentElement)")
        assert needed == inner <= width
        assert max(each(page, "body *", "e.getBoundingClientRect().right")) <= inner + 0.5
    page.click(".card:nth-child(6) .token")
    assert "“sold”" in text(page, "#status")
    # Nothing hides the token that was chosen.
    place = page.place(".card:nth-child(6) .token")
    assert page.run(f"document.elementFromPoint({place['x']}, {place['y']}).textContent") == "sold"
    page.run("document.activeElement.blur()")
    page.press("j", "j", "j")
    edges = each(page, "#bar, .card:focus", "[e.getBoundingClientRect().top, e.getBoundingClientRect().bottom]")
    (_, bar), (card, _) = edges
    assert card >= bar


def lightness(colour: str) -> float:
    """Relative luminance of a colour in CSS, as WCAG defines it."""
    channels = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((lightness(one), lightness(other)))
    return (high + 0.05) / (low + 0.05)


def sorted_by(values: list[float], light: list[float]) -> bool:
    """Whether what is larger is never lighter."""
    ranked = np.array(light)[np.argsort(values, kind="stable")]
    return bool((np.diff(ranked) <= 1e-9).all())
