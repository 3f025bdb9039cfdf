"""Placing files into the README: what stands between ``<!-- insert: PATH -->`` and ``<!-- end -->`` is that file.

python -m eval.readme README.md            # bring every block up to date
python -m eval.readme --check README.md    # only say which one is not; exit code 1
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from prior.errors import UserError
from prior.files import write_text

_MARK = re.compile(r"^<!-- (?:insert: (?P<path>\S+)|end) -->$", re.MULTILINE)


def render(text: str, read: Callable[[str], str]) -> str:
    """`text` with every block filled anew.

    Parameters
    ----------
    text
        Markdown. The two marks of a block stand alone on their lines; all else stays as it is.
    read
        Gives the content of a path as it stands in a mark.

    Raises
    ------
    UserError
        If a mark has no partner, or a content holds a mark itself.
    """
    return "".join(part if path is None else _block(path, read(path)) for path, part in _parts(text))


def stale(text: str, read: Callable[[str], str]) -> list[str]:
    """The paths of the blocks that `render` would change, in order."""
    return [path for path, part in _parts(text) if path is not None and part != _block(path, read(path))]


def _block(path: str, content: str) -> str:
    if _MARK.search(content):
        raise UserError(f"{path}: holds a line such as '<!-- end -->', which marks blocks; take it out")
    return f"<!-- insert: {path} -->\n\n{content.strip()}\n\n<!-- end -->"


def _parts(text: str) -> list[tuple[str | None, str]]:
    """The text cut into blocks, with their marks, and what lies between them (path None)."""
    parts: list[tuple[str | None, str]] = []
    position = 0
    opened: re.Match[str] | None = None
    for mark in _MARK.finditer(text):
        if (mark["path"] is None) == (opened is None):
            line = text.count("\n", 0, mark.start()) + 1
            raise UserError(f"line {line}: '{mark[0]}' has no partner; write an end mark after each insert mark")
        if opened is None:
            parts.append((None, text[position : mark.start()]))
            opened, position = mark, mark.start()
        else:
            parts.append((opened["path"], text[position : mark.end()]))
            opened, position = None, mark.end()
    if opened is not None:
        raise UserError(f"'{opened[0]}' has no partner; write '<!-- end -->' after it")
    return [*parts, (None, text[position:])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.readme", description="Place result tables into a README.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a block is out of date")
    parser.add_argument("file", type=Path, help="Markdown file; the paths in it are relative to its folder")
    given = parser.parse_args(arguments)

    def read(path: str) -> str:
        try:
            return (given.file.parent / path).read_text(encoding="utf-8")
        except OSError:
            preset = re.fullmatch(r"results/published/([^/]+)/.*", path)
            remedy = f"first: make publish PRESET={preset[1]}" if preset else "mend the path in its mark"
            raise UserError(f"{given.file}: there is no file '{path}' to insert; {remedy}") from None

    try:
        if not given.file.is_file():
            raise UserError(f"{given.file}: there is no such file; name a Markdown file")
        text = given.file.read_text(encoding="utf-8")
        if given.check:
            if old := stale(text, read):
                print(
                    f"{given.file}: out of date: {', '.join(old)}; run python -m eval.readme {given.file}",
                    file=sys.stderr,
                )
            return 1 if old else 0
        if (rendered := render(text, read)) != text:
            write_text(given.file, rendered)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
