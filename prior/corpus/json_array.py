"""JSON arrays of any length, one entry at a time: annotation files can be larger than memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from prior.errors import UserError

_CHUNK = 2**18
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n]*")
_AFTER = (",", "]", " ", "\t", "\r", "\n")


def is_array(source: Path) -> bool:
    """Whether the first character of a JSON file, blanks aside, opens an array."""
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        return _Window(file, source.name).peek() == "["


def read_array(source: Path) -> Iterator[Any]:
    """The entries of a JSON file that holds one array; little more than one entry is held in memory.

    Raises
    ------
    UserError
        If the file is not UTF-8, not JSON or not an array. A mistake is met when its turn comes.
    """
    with source.open(encoding="utf-8-sig") as file:
        window = _Window(file, source.name)
        window.take("[")
        if window.peek() != "]":
            yield window.value()
            while window.peek() != "]":
                window.take(",")
                yield window.value()
        window.take("]")
        window.take("")  # The end of the file.


class _Window:
    """The part of a text file that is being looked at, and how far it has been read."""

    def __init__(self, file: TextIO, name: str) -> None:
        self.file = file
        self.name = name
        self.text = ""
        self.at = 0
        self.lines = 1

    def peek(self) -> str:
        """The next character that is no blank; empty at the end of the file."""
        while True:
            blanks = _BLANKS.match(self.text, self.at)
            self.at = blanks.end() if blanks else self.at
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def take(self, character: str) -> None:
        """Go past the next character, which must be this one."""
        if self.peek() != character:
            raise self._broken(self.at)
        self.at += len(character)

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            start = self.at
            try:
                value, end = _DECODER.raw_decode(self.text, start)
            except json.JSONDecodeError as error:
                # What looks broken may go on in the next chunk.
                if not self._more():
                    raise self._broken(error.pos - start) from None
                continue
            # So may a number that looks whole ("1" of "1.5").
            if self.text.startswith(_AFTER, end):
                self.at = end
                return value
            if not self._more():
                self.at = end - start
                return value

    def _more(self) -> bool:
        """Drop what has been read and add at least as much as is left, so that a long entry is not tried too often."""
        self.lines += self.text.count("\n", 0, self.at)
        rest = self.text[self.at :]
        try:
            added = self.file.read(max(_CHUNK, len(rest)))
        except UnicodeDecodeError:
            raise UserError(f"{self.name}: not UTF-8; save the file as UTF-8") from None
        self.text, self.at = rest + added, 0
        return bool(added)

    def _broken(self, position: int) -> UserError:
        line = self.lines + self.text.count("\n", 0, position)
        return UserError(f"{self.name} line {line}: not valid JSON; mend it")
