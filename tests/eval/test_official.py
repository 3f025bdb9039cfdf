"""Official benchmarks: fetched over a verified connection or from a folder, whole or not at all, known by their md5."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from eval import official
from eval.official import fetch, provenance
from prior.errors import UserError
from prior.files import write_json
from tests.eval import official_tsvs

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PRIOR_VLMEVALKIT_PYTHON", str(ROOT / ".venv-vlmevalkit" / "bin" / "python"))
CONTENT = b"index\tquestion\tanswer\n" + b"".join(b"%d\tIs it so?\tYes\n" % row for row in range(20_000))


class Shop(BaseHTTPRequestHandler):
    """Serves CONTENT: ``/cut/`` breaks off half-way, ``/deaf/`` does so, too, and does not know how to go on."""

    asked: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append((self.path, wanted))
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", "/whole/X.tsv")
            self.end_headers()
            return
        if self.path.startswith("/gone/"):
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and "/deaf/" not in self.path else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        first = wanted is None and "/whole/" not in self.path
        self.wfile.write(CONTENT[start : len(CONTENT) // 2 if first or "/never/" in self.path else None])
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout {key} -out {certificate}"
    subprocess.run([*made.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(address=f"https://127.0.0.1:{server.server_port}", certificate=certificate)
    server.shutdown()
    server.server_close()


@pytest.fixture
def trusted(shop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shop's address, with its certificate made known."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(shop.certificate))
    monkeypatch.setattr(official, "PAUSE", 0.0)
    Shop.asked.clear()
    return str(shop.address)


def table(address: str, path: str = "whole", md5: str = hashlib.md5(CONTENT).hexdigest()) -> dict[str, dict[str, str]]:
    return {"MMStar": {"class": "ImageMCQDataset", "url": f"{address}/{path}/MMStar.tsv", "md5": md5}}


def get(name: str, known: Any, out: Path, benchmarks_dir: Path | None = None) -> None:
    """`fetch` with a table of this content."""
    path = out.parent / "official.json"
    write_json(path, known)
    fetch(name, path, out, benchmarks_dir)


def refused(said: str, folder: Path, name: str, known: Any, benchmarks_dir: Path | None = None) -> None:
    """`fetch` ends in one line with `said` and a remedy, and writes nothing."""
    with pytest.raises(UserError, match=said) as raised:
        get(name, known, folder / "out" / "MMStar.tsv", benchmarks_dir)
    assert "\n" not in str(raised.value) and ";" in str(raised.value)
    assert not list(folder.rglob("*MMStar.tsv*"))


@pytest.mark.parametrize("path", ["whole", "moved"])
def test_a_file_arrives_as_it_is(path: str, trusted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get("MMStar", table(trusted, path), tmp_path / "new" / "MMStar.tsv")
    assert (tmp_path / "new" / "MMStar.tsv").read_bytes() == CONTENT
    shown = capsys.readouterr()
    assert "MMStar.tsv" in shown.err and "100%" in shown.err and shown.out == ""


def test_a_certificate_that_nobody_vouches_for_is_refused(
    trusted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    refused("certificate cannot be verified", tmp_path, "MMStar", table(trusted))
    assert Shop.asked == []


@pytest.mark.parametrize(("path", "asked"), [("cut", 2), ("deaf", 2), ("never", official.ATTEMPTS)])
def test_a_transfer_that_breaks_off_is_taken_up_again(path: str, asked: int, trusted: str, tmp_path: Path) -> None:
    if path == "never":
        refused("the transfer broke off", tmp_path, "MMStar", table(trusted, path))
    else:
        get("MMStar", table(trusted, path), tmp_path / "MMStar.tsv")
        assert (tmp_path / "MMStar.tsv").read_bytes() == CONTENT
    (_, first), *again = Shop.asked
    assert first is None and len(again) == asked - 1
    assert all(wanted is not None and re.fullmatch(r"bytes=\d{5,}-", wanted) for _, wanted in again)


def test_what_is_not_the_official_file_is_not_kept(trusted: str, tmp_path: Path) -> None:
    wrong = "0" * 32
    refused(f"md5 is {hashlib.md5(CONTENT).hexdigest()}, .* {wrong}", tmp_path, "MMStar", table(trusted, md5=wrong))
    refused("the server answers 404 Not Found", tmp_path, "MMStar", table(trusted, "gone"))
    refused("no connection", tmp_path, "MMStar", table("https://127.0.0.1:9"))
    (tmp_path / "kept.tsv").write_text("as before")
    with pytest.raises(UserError):
        get("MMStar", table(trusted, md5=wrong), tmp_path / "kept.tsv")
    assert (tmp_path / "kept.tsv").read_text() == "as before"


def test_a_folder_serves_where_there_is_no_network(tmp_path: Path) -> None:
    known, folder = table("https://127.0.0.1:9"), tmp_path / "mine"
    refused("mine/MMStar.tsv: there is no such file", tmp_path, "MMStar", known, benchmarks_dir=folder)
    folder.mkdir()
    (folder / "MMStar.tsv").write_bytes(CONTENT)
    get("MMStar", known, tmp_path / "MMStar.tsv", folder)
    assert (tmp_path / "MMStar.tsv").read_bytes() == CONTENT


def test_a_result_can_say_which_file_it_rests_on(tmp_path: Path) -> None:
    path, md5 = tmp_path / "MMStar.tsv", hashlib.md5(CONTENT).hexdigest()
    path.write_bytes(CONTENT)
    same = {"md5": md5, "rows": 20_000}
    assert provenance(path, "MMStar", table("")) == same | {"official_md5": md5, "source": "official"}
    assert provenance(path, "Mine", table("")) == same | {"official_md5": None, "source": "own"}
    other = provenance(path, "MMStar", table("", md5="f00"))
    assert other == same | {"official_md5": "f00", "source": "unofficial"}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """VLMEvalKit's own table."""
    assert Path(PYTHON).is_file(), f"{PYTHON} is missing: run `bash envs/vlmevalkit.sh .venv .venv-vlmevalkit`"
    path = tmp_path_factory.mktemp("known") / "official.json"
    call = [PYTHON, "-m", "eval.vlmevalkit", "official", "--out", str(path)]
    subprocess.run(call, check=True, cwd=ROOT)
    return json.loads(path.read_text())


def test_the_table_is_vlmevalkits(known: Any) -> None:
    for name in official_tsvs.BENCHMARKS:
        entry = known[name]
        assert entry["class"] == ("ImageYORNDataset" if name in ("MME", "POPE") else "ImageMCQDataset")
        assert entry["url"].startswith("https://") and entry["url"].endswith(f"/{name}.tsv")
        assert re.fullmatch("[0-9a-f]{32}", entry["md5"])
    assert known["MMMU_DEV_VAL"] == {"class": "MMMUDataset"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mmstr", "no benchmark of this name; the nearest name is MMStar"),
        ("MMMU_DEV_VAL", "scores it by MMMUDataset, not by"),
        ("MMVet", "scores it by MMVet, not by"),
        ("HallusionBench", "scores Hallusion in a way of its own"),
        ("MMT-Bench_VAL", "scores MMT in a way of its own"),
        ("CCBench", "scores CCBench in a way of its own"),
        ("MMBench_TEST_EN", "its answers are not public"),
        ("MMStar_TR", "VLMEvalKit states no md5 for it"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_fetched(
    name: str, said: str, known: Any, tmp_path: Path
) -> None:
    refused(f"benchmarks.{name}: .*{said}", tmp_path, name, known, benchmarks_dir=tmp_path)


@pytest.mark.parametrize("name", official_tsvs.BENCHMARKS)
def test_stand_ins_have_the_official_sizes(name: str) -> None:
    frame = pd.DataFrame(official_tsvs.BENCHMARKS[name]())
    assert len(frame) == official_tsvs.ROWS[name] and frame["index"].is_unique
    if name == "POPE":
        exploded = frame.assign(category=frame["category"].str.split(",")).explode("category")
        assert dict(exploded["category"].value_counts()) == dict.fromkeys(["adversarial", "popular", "random"], 3000)
        assert frame["image_path"].nunique() == 500
    if name == "MMBench_DEV_EN":
        assert (frame["index"] % official_tsvs.ROTATION).nunique() == 1164
