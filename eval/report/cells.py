"""Tables that `eval.display.html` wrote, read back into cells, so that the page lays them out and links them itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Table:
    """A table as people see it; `rows` are texts, the first of each names its row."""

    title: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


def read_tables(fragment: str) -> list[Table]:
    """The tables of a page or fragment, in order. Markup that `eval.display.html` does not write is dropped."""
    reader = _Reader()
    reader.feed(fragment)
    reader.close()
    return reader.tables


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[Table] = []
        self.text: list[str] | None = None
        self.title = ""
        self.in_head = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "h3", "th", "td", "p", "caption"):
            self.text = []
        elif tag == "table":
            self.tables.append(Table(self.title))
            self.title = ""
        elif tag == "thead":
            self.in_head = True
        elif tag == "tr" and self.tables and not self.in_head:
            self.tables[-1].rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if tag == "thead":
            self.in_head = False
        if self.text is None or tag not in ("h2", "h3", "th", "td", "p", "caption"):
            return
        text, self.text = " ".join("".join(self.text).split()), None
        table = self.tables[-1] if self.tables else None
        if tag in ("h2", "h3"):
            self.title = text
        elif table is None:
            return
        elif tag == "caption":
            table.title = text
        elif tag == "p":
            table.note = f"{table.note} {text}".strip()
        elif self.in_head:
            table.columns.append(text)
        elif table.rows:
            table.rows[-1].append(text)

    def handle_data(self, data: str) -> None:
        if self.text is not None:
            self.text.append(data)
