"""WebDataset shards: what another reader sees in them, and one line for what is wrong with them."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from datasets import Image as ImageFeature
from datasets import load_dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from prior.config.patterns import expand
from prior.corpus import store
from prior.corpus.webdataset import read_tars
from prior.errors import UserError

File = tuple[str, bytes]


def picture(seed: int, kind: str = "JPEG", side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(side * side * 3)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, files: Iterable[File]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, number: int) -> list[File]:
    """As img2dataset writes it."""
    caption = f" Thing {number}, seen in Zürich \n"
    metadata = {"caption": caption, "url": "https://example.org", "width": 16, "height": 16, "status": "success"}
    files = {"jpg": picture(number), "json": json.dumps(metadata).encode(), "txt": caption.encode()}
    return [(f"{key}.{suffix}", content) for suffix, content in files.items()]


def message_of(paths: list[Path], allowed: float = 0.0) -> str:
    with pytest.raises(UserError) as caught:
        list(read_tars(paths, allowed))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_reader_finds_the_same_samples(tmp_path: Path) -> None:
    keys = [[f"{shard:05d}{number:04d}" for number in range(30)] for shard in range(2)]
    keys[1][:3] = ["folder/000", "folder.v2/000", "ключ 1"]
    contents = [[file for key in part for file in sample(key, int(key[-1]))] for part in keys]
    paths = [write_tar(tmp_path / f"cc-{shard}.tar", files) for shard, files in enumerate(contents)]
    records = list(read_tars(paths, 0.0))
    dataset = load_dataset("webdataset", data_files=list(map(str, paths)), split="train", streaming=True)
    expected = list(dataset.cast_column("jpg", ImageFeature(decode=False)))
    assert [record["image"] for record in records] == [entry["jpg"]["bytes"] for entry in expected]
    assert [record["caption"] for record in records] == [entry["txt"].strip() for entry in expected]
    assert [record["caption"] for record in records] == [entry["json"]["caption"].strip() for entry in expected]
    assert [entry["__key__"] for entry in expected] == keys[0] + keys[1]
    assert [record["id"] for record in records][29:34] == [
        "cc-0/000000029",
        "cc-1/folder/000",
        "cc-1/folder.v2/000",
        "cc-1/%D0%BA%D0%BB%D1%8E%D1%87%201",
        "cc-1/000010003",
    ]
    store.write_corpus(read_tars(paths, 0.0), tmp_path / "corpus")
    assert list(store.read_corpus(tmp_path / "corpus")) == records


def test_pictures_of_every_kind_and_captions_of_both(tmp_path: Path) -> None:
    pictures = {"jpeg": picture(0), "png": picture(1, "PNG"), "webp": picture(2, "WEBP"), "JPG": picture(3)}
    files = [
        file
        for number, (suffix, content) in enumerate(pictures.items())
        for file in ((f"{number}.cls", b"7"), (f"{number}.{suffix}", content), (f"{number}.txt", b"\xef\xbb\xbfdog"))
    ]
    files += [("5.json", b'{"caption": "From \\u0416"}'), ("5.seg.png", picture(9, "PNG")), ("5.jpg", picture(5))]
    files += [("README.md", b"no sample"), ("._5.jpg", b"no sample")]
    records = list(read_tars([write_tar(tmp_path / "a.tar", files)], 0.0))
    assert [record["image"] for record in records] == [*pictures.values(), picture(5)]
    assert [record["caption"] for record in records] == ["dog"] * 4 + ["From Ж"]


def bomb() -> bytes:
    """A small PNG file whose header says that it holds 20,000 x 20,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    content = picture(1, "PNG")
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[12 + len(header) + 4 :]


BAD: dict[str, tuple[list[File], str]] = {
    "no picture": ([("x.txt", b"dog")], "has no picture"),
    "no caption": ([("x.jpg", picture(1))], "has no caption"),
    "no caption in the metadata": ([("x.jpg", picture(1)), ("x.json", b'{"url": ""}')], "has an empty caption"),
    "null in the metadata": ([("x.jpg", picture(1)), ("x.json", b'{"caption": null}')], "has an empty caption"),
    "metadata cut off": ([("x.jpg", picture(1)), ("x.json", b'{"caption": "do')], "has an empty caption"),
    "half a surrogate pair": (
        [("x.jpg", picture(1)), ("x.json", b'{"caption": "\\ud83d"}')],
        "has a caption that is not UTF-8",
    ),
    "blank": ([("x.jpg", picture(1)), ("x.txt", b" \n"), ("x.json", b'{"caption": "dog"}')], "has an empty caption"),
    "Latin-1": ([("x.jpg", picture(1)), ("x.txt", b"caf\xe9")], "has a caption that is not UTF-8"),
    "no image": ([("x.jpg", b"<html>"), ("x.txt", b"dog")], "cannot be decoded"),
    "cut off": ([("x.jpg", picture(1)[:-100]), ("x.txt", b"dog")], "cannot be decoded"),
    "bomb": ([("x.png", bomb()), ("x.txt", b"dog")], "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_left_out_up_to_a_share(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, trouble = BAD[name]
    good = [[file for number in part for file in sample(f"{number}", number)] for part in ((1, 2), (3,))]
    paths = [write_tar(tmp_path / "a.tar", good[0] + files), write_tar(tmp_path / "b.tar", good[1])]
    records = list(read_tars(paths, 0.25))
    assert [record["id"] for record in records] == ["a/1", "a/2", "b/3"]
    note = capsys.readouterr().err
    assert note.startswith(f"note: a.tar, b.tar: 1 of 4 samples cannot be used ('a/x' {trouble})")
    assert note.count("\n") == 1
    message = message_of(paths, 0.24)
    assert "1 of 4 samples" in message and trouble in message and "max_bad_fraction" in message
    with pytest.raises(UserError):
        store.write_corpus(read_tars(paths, 0.0), tmp_path / "corpus")
    assert not list(tmp_path.glob("*corpus*"))


def test_a_tar_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """At every block but within the last ones, which are the end mark and what tar pads it with."""
    files = [file for number in range(3) for file in sample(f"{number}", number)]
    whole = write_tar(tmp_path / "a.tar", files).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 512 * -(-last.size // 512)
    for size in {*range(0, end + 1, 512), 100, end - 1, end + 511}:
        (tmp_path / "a.tar").write_bytes(whole[:size])
        assert re.search(r"a\.tar': cut off, or no plain tar file .*; fetch it again", message_of([tmp_path / "a.tar"]))
    broken = bytearray(whole)
    broken[last.offset + 148] ^= 1  # A checksum.
    for content in (bytes(broken), b"version https://git-lfs.github.com/spec/v1\n", random.Random(0).randbytes(5000)):
        (tmp_path / "a.tar").write_bytes(content)
        assert "cut off, or no plain tar file" in message_of([tmp_path / "a.tar"])


def test_mistakes_in_the_names_are_one_line_each(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("1", 1))
    other = write_tar(tmp_path / "other" / "a.tar", sample("1", 1))
    assert "no file" in message_of([tmp_path / "none.tar"])
    assert "rename" in message_of([tar, other])
    assert "rename" in message_of([tar, tar])
    assert "fewer shards" in message_of([])
    assert "no samples" in message_of([write_tar(tmp_path / "b.tar", [("a.mp4", b"")])])
    # A key that comes back is another sample, and a corpus has no two under one id.
    twice = write_tar(tmp_path / "c.tar", sample("1", 1) + sample("1", 2))
    with pytest.raises(UserError, match="'c/1' occurs twice"):
        store.write_corpus(read_tars([twice], 0.0), tmp_path / "corpus")


def test_a_longer_tar_takes_no_more_memory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        files = [file for number in range(count) for file in sample(f"{number:05d}", number % 7)]
        tar = write_tar(tmp_path / f"{count}.tar", files)
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_tars([tar], 0.0)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # Loads the decoders.
    # What is kept of a sample, if only its header, would be kept 800 times.
    assert peak(800) < 1.5 * peak(40)


NAME = st.text("ab-_.0", min_size=1, max_size=4).filter(lambda text: ".." not in text)
NUMBER = st.integers(0, 30).flatmap(lambda n: st.integers(1, 4).map(lambda width: f"{n:0{width}d}"))
ENDS = st.tuples(NUMBER, NUMBER).filter(lambda ends: int(ends[0]) <= int(ends[1]))
RANGE = ENDS.map(lambda ends: "{" + "..".join(ends) + "}")
CHOICE = st.lists(NAME, min_size=2, max_size=3, unique=True).map(lambda names: "{" + ",".join(names) + "}")
PATTERN = st.lists(st.one_of(NAME, RANGE, CHOICE), min_size=1, max_size=3).map("".join)


@settings(deadline=None)
@given(PATTERN)
@example("cc12m-train-{0000..0599}.tar")
@example("{8..0100}")
def test_patterns_mean_what_they_mean_to_a_shell(pattern: str) -> None:
    out = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True).stdout
    names = out.splitlines()
    if len(set(names)) < len(names):
        with pytest.raises(ValueError, match="twice"):
            expand(pattern)
    else:
        assert expand(pattern) == names
        assert expand(f"first.x, {pattern}") == ["first.x", *names]


@pytest.mark.parametrize(
    "pattern",
    ["", "a,,b", "a,", "{0..3", "0..3}", "}{", "{}", "{0..}", "{..3}", "{3..0}", "{a..c}", "{0..9..2}", "{a}", "{a,}",
     "{{0..1},2}", "a,b,a", "{-1..2}", "{1,2..3}"],
)  # fmt: skip
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"'{pattern}': ")) as caught:
        expand(pattern)
    assert "\n" not in str(caught.value)
