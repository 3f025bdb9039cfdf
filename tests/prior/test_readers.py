"""Folders of pictures in, stored corpora out; every mistake of the user's is one clear line."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
from pathlib import Path

import pytest
from datasets import load_from_disk
from PIL import Image

from prior.config import FolderCorpus
from prior.corpus import store
from prior.corpus.readers import read_folder
from prior.errors import UserError

PICTURES = 60
CAPTIONS = 3


def picture(seed: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (24, 16), random.Random(seed).randbytes(24 * 16 * 3)).save(file, kind)
    return file.getvalue()


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("image", "caption")) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    (folder / "images").mkdir(parents=True)
    for i in range(PICTURES):
        (folder / "images" / f"p{i}.jpg").write_bytes(picture(i))
    write_csv(
        folder / "captions.csv",
        [(f"p{i}.jpg", f'Thing {i}, seen "{k}" times') for i in range(PICTURES) for k in range(CAPTIONS)],
    )
    return folder


def settings(folder: Path, **changes: object) -> FolderCorpus:
    return FolderCorpus.model_validate({"folder": str(folder), "val_fraction": 0.25, **changes})


def fails(folder: Path, *words: str, **changes: object) -> None:
    with pytest.raises(UserError) as caught:
        read_folder(settings(folder, **changes))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_every_caption_arrives_once_with_the_bytes_of_its_picture(album: Path) -> None:
    splits = read_folder(settings(album))
    train, val = list(splits.train), list(splits.val)
    found = {record["id"]: record for record in train + val}
    assert len(found) == len(train) + len(val) == PICTURES * CAPTIONS
    for i in range(PICTURES):
        for k in range(CAPTIONS):
            record = found[f"p{i}-{k}"]
            assert record["caption"] == f'Thing {i}, seen "{k}" times'
            assert record["image"] == picture(i)
            assert record["relevant"] is None
    pictures = [{record["image"] for record in part} for part in (train, val)]
    assert not pictures[0] & pictures[1]
    assert 0.1 * PICTURES < len(pictures[1]) < 0.45 * PICTURES
    # Without a text-only file the training captions stand in: held-out captions must not be among them.
    assert [text["text"] for text in splits.text_only] == [record["caption"] for record in train]


def test_a_picture_keeps_its_split_when_others_leave(album: Path) -> None:
    before = {record["id"] for record in read_folder(settings(album)).val}
    write_csv(album / "captions.csv", [(f"p{i}.jpg", f"Other {i}") for i in range(0, PICTURES, 2)])
    after = {record["id"] for record in read_folder(settings(album)).val}
    assert after == {identity for identity in before if int(identity[1:-2]) % 2 == 0 and identity.endswith("-0")}


def test_max_captions_cuts_the_same_way_each_time_and_keeps_both_splits(album: Path) -> None:
    whole_set, cuts = read_folder(settings(album)), [read_folder(settings(album, max_captions=60)) for _ in range(2)]
    first, second = [[list(part) for part in cut] for cut in cuts]
    assert first == second
    assert len(first[0]) + len(first[1]) == 60
    for part, full in zip(first[:2], whole_set[:2], strict=True):
        assert part and {record["id"] for record in part} <= {record["id"] for record in full}


def test_text_only_lines_of_held_out_pictures_are_left_out(album: Path) -> None:
    rows = [(f"p{i}.jpg", f"Text {i}") for i in range(PICTURES)] + [
        ("elsewhere.jpg", "Repeated"),
        ("x.jpg", "Repeated"),
    ]
    write_csv(album / "texts.csv", rows)
    splits = read_folder(settings(album, text_only="texts.csv"))
    held_out = {record["id"].split("-")[0] for record in splits.val}
    texts = list(splits.text_only)
    assert [text["text"] for text in texts] == [text for image, text in rows if image[:-4] not in held_out]
    assert len({text["id"] for text in texts}) == len(texts)
    assert len(list(read_folder(settings(album, text_only="texts.csv", max_captions=30)).text_only)) == 30
    write_csv(album / "texts.csv", [("No picture is named",)], header=("caption",))
    assert [t["text"] for t in read_folder(settings(album, text_only="texts.csv")).text_only] == ["No picture is named"]


def test_coco_and_llava_json_read_like_the_csv(album: Path) -> None:
    expected = list(read_folder(settings(album)).val)
    with (album / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    names = sorted({image for image, _ in rows})
    coco = {
        "images": [{"id": 7 * i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": 7 * names.index(n), "caption": c} for i, (n, c) in enumerate(rows)],
    }
    llava = [
        {
            "image": n,
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": c}],
        }
        for n, c in rows
    ]
    for value in (coco, llava):
        (album / "captions.json").write_text(json.dumps(value), encoding="utf-8")
        assert list(read_folder(settings(album, captions="captions.json")).val) == expected
    for broken, word in (
        ('{"images": []}', "annotations"),
        ('[{"image": "p0.jpg"}]', "conversations"),
        ("[\n[", "line 2"),
        ('{"images": [{"id": 1, "file_name": "p0.jpg"}], "annotations": [{"image_id": 1, "caption": null}]}', "empty"),
        ('[{"image": "p0.jpg", "conversations": [{"from": "gpt", "value": null}]}]', "empty"),
        ('[{"image": null, "conversations": [{"from": "gpt", "value": "A dog"}]}]', "image is not named"),
    ):
        (album / "captions.json").write_text(broken, encoding="utf-8")
        fails(album, "captions.json", word, captions="captions.json")


def test_bad_pictures_are_counted_named_and_left_out_only_where_allowed(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (album / "images" / "p3.jpg").unlink()
    (album / "images" / "p5.jpg").write_text("no picture")
    (album / "images" / "p8.jpg").write_bytes(picture(8)[:-200])
    broken = bytearray(picture(9, "PNG"))
    broken[60] ^= 255
    (album / "images" / "p9.jpg").write_bytes(broken)
    named = ("4 of 60", "'p3.jpg' is missing", "'p5.jpg' cannot be decoded", "'p8.jpg' cannot be decoded, …")
    fails(album, *named, "max_bad_fraction")
    fails(album, *named, max_bad_fraction=0.06)
    splits = read_folder(settings(album, max_bad_fraction=4 / 60))
    assert "4 of 60 pictures" in capsys.readouterr().err
    ids = {record["id"] for part in splits[:2] for record in part}
    assert ids == {f"p{i}-{k}" for i in range(PICTURES) if i not in (3, 5, 8, 9) for k in range(CAPTIONS)}


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_are_the_training_split_and_each_needs_its_own_pictures_alone(album: Path, parts: int) -> None:
    allowed = settings(album, max_captions=PICTURES * CAPTIONS - 10)
    train, val, texts = map(list, read_folder(allowed))
    files = {path: path.read_bytes() for path in (album / "images").iterdir()}

    def keep(records: list[store.Record]) -> None:
        needed = {record["image"] for record in records}
        for path, content in files.items():
            path.write_bytes(content if content in needed else b"no picture")

    shares = [list(read_folder(allowed, part, parts).train) for part in range(parts)]
    assert all(shares)
    joined = [record for share in shares for record in share]
    assert len(joined) == len(train)
    assert sorted(joined, key=lambda record: record["id"]) == sorted(train, key=lambda record: record["id"])
    assert len({record["image"] for record in train}) == sum(len({r["image"] for r in share}) for share in shares)
    for part, share in enumerate(shares):
        keep(share)
        assert list(read_folder(allowed, part, parts).train) == share
    keep(val)
    assert list(read_folder(allowed, 0, parts).val) == val
    keep([])
    assert list(read_folder(allowed, 0, parts).text_only) == texts
    with pytest.raises(UserError, match="captions.csv: .* pictures cannot be used"):
        list(read_folder(allowed, parts - 1, parts).train)


def test_bad_pictures_are_a_share_of_the_part_that_is_read(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = [{record["image"] for record in read_folder(settings(album), part, 2).train} for part in range(2)]
    broken = next(path for path in (album / "images").iterdir() if path.read_bytes() in shares[1])
    broken.unlink()
    capsys.readouterr()
    allowed = settings(album, max_bad_fraction=1 / len(shares[1]))
    assert {record["image"] for record in read_folder(allowed, 0, 2).train} == shares[0]
    assert not capsys.readouterr().err
    assert len({record["image"] for record in read_folder(allowed, 1, 2).train}) == len(shares[1]) - 1
    assert f"1 of {len(shares[1])} pictures cannot be used ('{broken.name}' is missing)" in capsys.readouterr().err
    for part, parts, words in ((2, 2, "no part 2 of 2"), (-1, 2, "no part -1 of 2"), (0, 10**9, "fewer parts")):
        with pytest.raises(UserError, match=words):
            list(read_folder(settings(album), part, parts).train)


def test_mistakes_in_the_captions_are_one_line_each(album: Path) -> None:
    file = album / "captions.csv"
    good = file.read_text(encoding="utf-8")
    fails(album.with_name("none"), "there is no folder", "none")
    fails(album, "no file", "texts.csv", text_only="texts.csv")
    fails(album, "no captions for the val split", val_fraction=1e-9)
    fails(album, "no captions for the train split", val_fraction=1 - 1e-9)
    for content, words in {
        good.replace("image,caption", "file,text"): ("'image' and 'caption'",),
        good + "p1.jpg,  \n": (f"line {PICTURES * CAPTIONS + 2}", "empty"),
        good + "p1.jpg\n": (f"line {PICTURES * CAPTIONS + 2}", "empty"),
        good + ",A caption\n": ("image is not named",),
        good + "p1.jpg,A dog, a cat\n": ("more fields than columns", "quotes"),
        good + 'p1.jpg,"A dog\n': ("not valid CSV",),
        good + "p1.jpg,Twice\np1.jpg,Twice\np1.jpg,Twice\n": ("line 183: repeats line 182", "2 such rows"),
        "image,caption\n": ("no captions in it",),
    }.items():
        file.write_text(content, encoding="utf-8")
        fails(album, "captions.csv", *words)
    file.write_bytes(b"image,caption\np1.jpg,caf\xe9\n")
    fails(album, "UTF-8")
    (album / "images" / "p1.png").write_bytes(picture(1, "PNG"))
    file.write_text(good + "p1.png,The same stem\n", encoding="utf-8")
    fails(album, "p1.png", "p1.jpg", "rename")
    file.unlink()
    fails(album, "no file", "captions.csv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_stored_corpus_is_what_was_written_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    records = [
        store.Record(id=f"é{i}", image=picture(i), caption=f"a {i} ü", relevant=[[2, 3], [4, 5]] if i % 2 else None)
        for i in range(700)  # More than one batch.
    ]
    for name in ("one", "two"):
        store.write_corpus(iter(records), tmp_path / "deep" / name)
    assert contents(tmp_path / "deep" / "one") == contents(tmp_path / "deep" / "two")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["one", "two"]
    dataset = load_from_disk(str(tmp_path / "deep" / "one"))
    assert dataset.column_names == ["id", "image", "caption", "relevant"]
    assert list(store.read_corpus(tmp_path / "deep" / "one")) == records


def test_the_fingerprint_follows_ids_captions_and_pictures(tmp_path: Path) -> None:
    def stored(*pairs: tuple[str, str]) -> str:
        store.write_texts((store.Text(id=identity, text=text) for identity, text in pairs), tmp_path / "texts")
        return store.fingerprint(tmp_path / "texts")

    base = stored(("a", "b"), ("c", "d"))
    # An independent recomputation with coreutils: printf '["a", "b"]\n["c", "d"]\n' | sha256sum
    assert base == "2a6e1d06516a487d7f43c32e3f7e0e4527530d83fb18ef79562d8cb0cbb07398"
    assert stored(("a", "b"), ("c", "d")) == base
    assert (
        len({base, stored(("a", "b"), ("c", "e")), stored(("c", "d"), ("a", "b")), stored(("ab", ""), ("c", "d"))}) == 4
    )
    prints = set()
    for shade in (1, 2):
        record = store.Record(id="a", image=picture(shade), caption="b", relevant=None)
        store.write_corpus([record], tmp_path / "captions")
        prints.add(store.fingerprint(tmp_path / "captions"))
    assert len(prints) == 2, "other pictures under the same names are another corpus"


def test_a_failed_write_leaves_the_old_corpus_and_nothing_else(tmp_path: Path) -> None:
    store.write_texts([store.Text(id="a", text="b")], tmp_path / "texts")
    before = contents(tmp_path)
    for records, word in (
        ([store.Text(id="a", text="b"), store.Text(id="a", text="c")], "'a' occurs twice"),
        ([], "nothing"),
    ):
        with pytest.raises(UserError, match=re.escape(word)):
            store.write_texts(records, tmp_path / "texts")
    assert contents(tmp_path) == before
    for read in (store.read_corpus, store.fingerprint):
        with pytest.raises(UserError, match="no corpus"):
            read(tmp_path / "none")


PHOTOS = os.environ.get("PRIOR_PHOTOS")


@pytest.mark.skipif(not PHOTOS, reason="PRIOR_PHOTOS does not name a folder of photographs")
def test_real_photographs() -> None:
    given = FolderCorpus.model_validate({"folder": PHOTOS, "text_only": "text_only_captions.csv"})
    with (Path(given.folder) / given.captions).open(encoding="utf-8", newline="") as file:
        rows = [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    splits = read_folder(given)
    train, val, texts = list(splits.train), list(splits.val), list(splits.text_only)
    assert sorted(record["caption"] for record in train + val) == sorted(caption.strip() for _, caption in rows)
    pictures = [{record["image"] for record in part} for part in (train, val)]
    assert not pictures[0] & pictures[1]
    assert len(pictures[0]) + len(pictures[1]) == len({image for image, _ in rows})
    assert 0.05 < len(val) / len(rows) < 0.2
    assert len(texts) > len(rows)
