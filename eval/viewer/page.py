"""The token viewer's page: data, script and style in one file that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prior.files import write_text

FOLDER = Path(__file__).resolve().parent


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML. `data` is what `eval.viewer.gather.gather` returns; its texts never become markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Inside a script element only "<" can end it.
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script, style = ((FOLDER / file).read_text(encoding="utf-8") for file in ("viewer.js", "viewer.css"))
    return environment.get_template("page.html.j2").render(data=content, script=script, style=style, **data)


def write_page(data: Mapping[str, Any], path: str | Path) -> None:
    """Write the page."""
    write_text(path, render(data))
