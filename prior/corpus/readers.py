"""Captioned pictures from a folder: images beside a CSV file, COCO's captions JSON or LLaVA's conversations JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from prior.config import FolderCorpus
from prior.corpus.json_array import is_array, read_array
from prior.corpus.store import Record, Text
from prior.errors import UserError
from prior.hashing import uniform


class Row(NamedTuple):
    """One caption of a source file; `place` says where it stands ("line 7")."""

    image: str
    caption: str
    place: str


class Caption(NamedTuple):
    """A row under its id."""

    identity: str
    row: Row


class Splits(NamedTuple):
    """What `read_folder` gives; each may be iterated once, and pictures are read when their turn comes."""

    train: Iterator[Record]
    val: Iterator[Record]
    text_only: Iterator[Text]


def read_folder(settings: FolderCorpus, part: int = 0, parts: int = 1) -> Splits:
    """Read a folder of captioned pictures and divide it by picture into training and held-out captions.

    A picture's place is decided by the SHA-256 of its name alone, so it stays there when others come or go. The k-th
    caption of a picture has the id ``<stem>-<k>``; which words the picture decides is unknown (`relevant` is None).
    `max_captions` keeps the captions of the first pictures in hash order, and as many lines of the text-only file.
    Without a text-only file the training captions stand in for it. Text-only lines that name a held-out picture are
    left out.

    Parameters
    ----------
    settings
        The folder, and how to divide it.
    part, parts
        Which part of the training pictures `train` holds, counted from 0, and of how many. The SHA-256 of its name
        decides a picture's part; all parts together are the split. `val` and `text_only` are always whole.

    Returns
    -------
    The three splits. With one part, every picture is decoded once before anything is returned. With several, a job
    reads one of the splits: only its own pictures are decoded, when its iteration begins, and `max_bad_fraction` is a
    share of them. Captions that stand in for a text-only file then stay even if their pictures are left out.

    Raises
    ------
    UserError
        If a file, a column, a caption or a picture is missing or broken, an entry is there twice, or a split is empty.
    """
    if not 0 <= part < parts:
        raise UserError(f"corpus: there is no part {part} of {parts}; parts are counted from 0")
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise UserError(f"corpus.folder: there is no folder '{folder}'; name the folder that holds your captions file")
    source = folder / settings.captions
    rows = _read_rows(source, with_image=True)
    _refuse_duplicates(rows, source)
    rows = _cut(rows, settings.max_captions)
    images = folder / settings.images
    check = partial(_bad_pictures, source=source, images=images, allowed=settings.max_bad_fraction)
    if parts == 1:
        bad = check(row.image for row in rows)
        rows = [row for row in rows if row.image not in bad]

    held_out = {image for image in {row.image for row in rows} if uniform(image) < settings.val_fraction}
    captions = list(_identify(rows, source))
    train = [caption for caption in captions if caption.row.image not in held_out]
    val = [caption for caption in captions if caption.row.image in held_out]
    for name, split in (("train", train), ("val", val)):
        if not split:
            raise UserError(
                f"corpus: {source.name} leaves no captions for the {name} split (val_fraction {settings.val_fraction}, "
                f"{len(rows)} captions); change corpus.val_fraction or add pictures"
            )
    texts: Iterable[Text] = (Text(id=caption.identity, text=caption.row.caption) for caption in train)
    if settings.text_only is not None:
        texts = _read_texts(folder / settings.text_only, held_out, settings.max_captions)
    if parts == 1:
        return Splits(_records(train, images), _records(val, images), iter(texts))
    # Salted for the same reason as the cut: training pictures have the upper fractions of the unsalted order.
    own = [caption for caption in train if int(uniform(f"part:{caption.row.image}") * parts) == part]
    return Splits(_checked(own, images, check), _checked(val, images, check), iter(texts))


def _cut(rows: list[Row], limit: int | None) -> list[Row]:
    # The salt keeps this order apart from the one that splits; else a short cut would be all validation.
    if limit is None or len(rows) <= limit:
        return rows
    order = sorted(range(len(rows)), key=lambda i: (uniform(f"cut:{rows[i].image}"), rows[i].image, i))
    return [rows[i] for i in sorted(order[:limit])]


def _identify(rows: list[Row], source: Path) -> Iterator[Caption]:
    """Number the captions of each picture; two pictures whose names differ only in folder or suffix would clash."""
    count: dict[str, int] = {}
    owner: dict[str, str] = {}
    for row in rows:
        stem = Path(row.image).stem
        if owner.setdefault(stem, row.image) != row.image:
            raise UserError(
                f"{source.name} {row.place}: '{row.image}' and '{owner[stem]}' would share the ids '{stem}-<k>'; "
                "rename one of the images"
            )
        count[stem] = count.get(stem, -1) + 1
        yield Caption(f"{stem}-{count[stem]}", row)


def _refuse_duplicates(rows: list[Row], source: Path) -> None:
    first: dict[tuple[str, str], Row] = {}
    repeats = [row for row in rows if first.setdefault((row.image, row.caption), row) is not row]
    if repeats:
        row = repeats[0]
        raise UserError(
            f"{source.name} {row.place}: repeats {first[row.image, row.caption].place}, the same image and caption "
            f"({len(repeats)} such rows in all); remove the repeats"
        )


def _bad_pictures(names: Iterable[str], source: Path, images: Path, allowed: float) -> set[str]:
    """Those of the pictures that cannot be used; refused where they are more than allowed."""
    different = list(dict.fromkeys(names))
    bad = {}
    for name in tqdm(different, desc="Checking pictures", unit="picture", disable=None, leave=False):
        if trouble := _file_trouble(images / name):
            bad[name] = f"'{name}' {trouble}"
    remedy = f"mend or remove them in '{images}'"
    leave_out(source.name, "pictures", list(bad.values()), len(different), allowed, remedy)
    return set(bad)


def leave_out(source: str, kind: str, bad: Sequence[str], total: int, allowed: float, remedy: str) -> None:
    """Say in one note what is left out of a corpus, if anything, or refuse it.

    Parameters
    ----------
    source, kind
        Where the entries are and what they are called: "captions.csv" and "pictures".
    bad
        The bad ones, each with its name and its trouble: "'p1.jpg' is missing".
    total
        How many entries there are, good and bad.
    allowed
        The share of bad ones up to which they are left out.
    remedy
        What else can be done about them: "mend or remove them".

    Raises
    ------
    UserError
        If more than the allowed share is bad.
    """
    if not bad:
        return
    some = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
    summary = f"{source}: {len(bad)} of {total} {kind} cannot be used ({some})"
    if len(bad) > allowed * total:
        raise UserError(f"{summary}; {remedy}, or raise max_bad_fraction above {allowed:g}")
    print(f"note: {summary}; left out, as max_bad_fraction {allowed:g} allows", file=sys.stderr)


def _file_trouble(path: Path) -> str | None:
    if not path.is_file():
        return "is missing"
    try:
        return picture_trouble(path.read_bytes())
    except OSError:
        return "cannot be read"


def picture_trouble(content: bytes) -> str | None:
    """What is wrong with an encoded picture, if anything: it is decoded once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # verify() compares checksums where a format has them, and spends the image; load() decodes its pixels.
            Image.open(io.BytesIO(content)).verify()
            Image.open(io.BytesIO(content)).load()
    except Exception:  # Decoders raise anything from OSError to zlib.error on a broken file.
        return "cannot be decoded"
    return None


def _checked(captions: list[Caption], images: Path, check: Callable[[Iterable[str]], set[str]]) -> Iterator[Record]:
    """The records of captions whose pictures have not been decoded before."""
    if not captions:
        raise UserError("corpus: this part of the training captions is empty; divide them into fewer parts")
    bad = check(caption.row.image for caption in captions)
    yield from _records((caption for caption in captions if caption.row.image not in bad), images)


def _records(captions: Iterable[Caption], images: Path) -> Iterator[Record]:
    name, content = None, b""
    for identity, row in captions:
        if row.image != name:
            name, content = row.image, (images / row.image).read_bytes()
        yield Record(id=identity, image=content, caption=row.caption, relevant=None)


def _read_texts(source: Path, held_out: Collection[str], limit: int | None) -> list[Text]:
    rows = _read_rows(source, with_image=False)
    kept = [(number, row) for number, row in enumerate(rows) if row.image not in held_out]
    if len(kept) < len(rows):
        print(f"note: {source.name}: {len(rows) - len(kept)} captions of held-out pictures left out", file=sys.stderr)
    order = sorted(kept, key=lambda item: uniform(f"cut:{item[0]}"))[:limit]
    if not order:
        raise UserError(f"{source.name}: no text-only captions are left; add some or remove corpus.text_only")
    return [Text(id=f"text-{number}", text=row.caption) for number, row in sorted(order)]


def _read_rows(source: Path, with_image: bool) -> list[Row]:
    """Every caption of a source file; the image's name is empty where it is neither there nor needed."""
    if not source.is_file():
        raise UserError(f"corpus: there is no file '{source}'; write it, or name the right one in the preset")
    rows = list((_json_rows if source.suffix == ".json" else _csv_rows)(source, with_image))
    for row in rows:
        if not row.caption:
            raise UserError(f"{source.name} {row.place}: the caption is empty; write one or remove the entry")
        if with_image and not row.image:
            raise UserError(f"{source.name} {row.place}: the image is not named; name one or remove the entry")
    if not rows:
        raise UserError(f"{source.name}: there are no captions in it; add some")
    return rows


def _text_of(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _csv_rows(source: Path, with_image: bool) -> Iterator[Row]:
    # Strict: a quote that is never closed would otherwise swallow the rest of the file as one caption.
    reader = csv.DictReader(io.StringIO(_text_of(source), newline=""), strict=True)
    needed = ["image", "caption"] if with_image else ["caption"]
    try:
        if missing := [name for name in needed if name not in (reader.fieldnames or [])]:
            raise UserError(
                f"{source.name}: no column {' and '.join(map(repr, missing))}; "
                f"its first line must be {','.join(needed)}"
            )
        for entry in reader:
            place = f"line {reader.line_num}"
            if None in entry:
                raise UserError(
                    f"{source.name} {place}: more fields than columns; put a caption with commas into quotes"
                )
            yield Row((entry.get("image") or "").strip(), (entry["caption"] or "").strip(), place)
    except csv.Error as error:
        raise UserError(f"{source.name} line {reader.line_num}: not valid CSV ({error}); mend its quotes") from None


def _json_rows(source: Path, with_image: bool) -> Iterator[Row]:
    """COCO's captions (``{"images": […], "annotations": […]}``) or LLaVA's ``[{"image", "conversations"}, …]``.

    Of a conversation the first answer is the caption, as in LLaVA's pre-training data.
    """
    try:
        if is_array(source):
            for number, entry in enumerate(read_array(source), start=1):
                answers = [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]
                image = _stripped(entry["image"] if with_image else entry.get("image"))
                yield Row(image, _stripped(answers[0] if answers else None), f"entry {number}")
        else:
            value: Any = json.loads(_text_of(source))
            names = {entry["id"]: _stripped(entry["file_name"]) for entry in value["images"]}
            for number, entry in enumerate(value["annotations"], start=1):
                yield Row(names[entry["image_id"]], _stripped(entry["caption"]), f"annotation {number}")
    except json.JSONDecodeError as error:
        raise UserError(f"{source.name} line {error.lineno}: not valid JSON; mend it") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{source.name}: neither COCO's captions nor LLaVA's conversations ({type(error).__name__}: {error}); "
            "mend it or write a CSV file with image,caption rows"
        ) from None


def _stripped(value: Any) -> str:
    """A JSON value as text; null is none."""
    return "" if value is None else str(value).strip()
