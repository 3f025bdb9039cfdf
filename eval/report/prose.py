"""Captions in reStructuredText, as ``snakemake --report`` wants them, for our own page."""

from __future__ import annotations

from pathlib import Path

from docutils.core import publish_parts  # type: ignore[import-untyped]

CAPTIONS = Path(__file__).resolve().parents[2] / "workflow" / "report"
# A caption is text: it reads no file, runs no raw HTML, and a mistake in it is an error and no red box on the page.
SETTINGS = {"file_insertion_enabled": False, "raw_enabled": False, "halt_level": 2, "report_level": 5}


def caption(name: str, folder: Path = CAPTIONS) -> str:
    """The caption ``<name>.rst`` as HTML paragraphs.

    Raises
    ------
    OSError
        If there is none.
    docutils.utils.SystemMessage
        If it is no reStructuredText, or asks for files or raw HTML.
    """
    return html((folder / f"{name}.rst").read_text(encoding="utf-8"))


def html(text: str) -> str:
    """A piece of reStructuredText as HTML, everything else in it escaped."""
    parts: dict[str, str] = publish_parts(text, writer="html5", settings_overrides=SETTINGS)
    return parts["body"].strip()


def split(caption: str) -> tuple[str, str]:
    """A caption's first paragraph, and the others."""
    first, end, others = caption.partition("</p>")
    return first + end, others.strip()
