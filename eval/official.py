"""Official benchmarks: the files that VLMEvalKit names, from where it says they are or from a folder.

VLMEvalKit turns off the verification of SSL certificates when it is imported; nothing here imports it. Its own table of
addresses and md5 sums comes as a file that ``python -m eval.vlmevalkit official`` writes in its environment.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from eval.tsv import read_benchmark
from prior.errors import UserError
from prior.files import whole

Table = Mapping[str, Mapping[str, str]]

CLASSES = ("ImageMCQDataset", "ImageYORNDataset")
# Parts of names by which these two classes score in another way than they do MME, POPE, MMBench and plain questions.
OWN_WAYS = ("MMMU", "MMT", "MMSci", "MMVP", "LEGO", "CCBench", "MMCR", "circular", "Hallusion", "AMBER", "VSR")
# Their answers are not public, so that nobody but their makers can score them.
SECRET = ("MMBench_TEST",)
# A transfer that breaks off is taken up again, so many times and after so many seconds.
ATTEMPTS, PAUSE = 5, 5.0
# Seconds without a byte after which a server is given up.
PATIENCE = 60.0
BLOCK = 1 << 16


def fetch(name: str, table: Path, out: Path, benchmarks_dir: Path | None = None) -> None:
    """Write the benchmark `name` to `out`: downloaded and compared with its md5, or ``<benchmarks_dir>/<name>.tsv``.

    A file from `benchmarks_dir` need not be the official one; `provenance` says whether it is.

    Parameters
    ----------
    table
        The JSON file that ``python -m eval.vlmevalkit official`` writes: name -> ``class``, ``url`` and ``md5``.

    Raises
    ------
    UserError
        If the name is unknown or scored in a way that is not supported, or the file cannot be had whole.
    """
    if not table.is_file():
        raise UserError(f"{table}: there is no such file; write it by `python -m eval.vlmevalkit official`")
    entry = _entry(name, json.loads(table.read_text(encoding="utf-8")))
    if benchmarks_dir is not None:
        source = Path(benchmarks_dir) / f"{name}.tsv"
        if not source.is_file():
            raise UserError(
                f"{source}: there is no such file; put it there, or leave out `benchmarks_dir` to download it"
            )
        with whole(out) as temporary:
            shutil.copyfile(source, temporary)
        return
    remedy = f"try again, or put {name}.tsv into a folder and name it in the preset: `benchmarks_dir: <folder>`"
    with whole(out) as temporary:
        try:
            found = _download(entry["url"], temporary)
        except requests.RequestException as error:
            raise UserError(f"{entry['url']}: {_reason(error)}; {remedy}") from None
        if found != entry["md5"]:
            raise UserError(f"{entry['url']}: the file's md5 is {found}, VLMEvalKit's is {entry['md5']}; {remedy}")


def provenance(path: Path, name: str, table: Table) -> dict[str, Any]:
    """What a benchmark's file is, by VLMEvalKit's table: ``md5``, ``official_md5``, ``source`` and ``rows``.

    ``official_md5`` is None for a benchmark that is none of VLMEvalKit's; ``source`` then is ``own``, otherwise
    ``official`` or, with another md5, ``unofficial``.
    """
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    official = table.get(name, {}).get("md5")
    source = "own" if name not in table else "official" if md5 == official else "unofficial"
    return {"md5": md5, "official_md5": official, "source": source, "rows": len(read_benchmark(path, pictures=False))}


def _entry(name: str, table: Table) -> Mapping[str, str]:
    """What the table says of a benchmark, if it can be scored here."""
    where = f"benchmarks.{name}"
    if name not in table:
        known = {other.lower(): other for other in table}
        nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)
        hint = f"; the nearest name is {known[nearest[0]]}" if nearest else ""
        raise UserError(f"{where}: VLMEvalKit has no benchmark of this name{hint}")
    entry = table[name]
    instead = "score it with VLMEvalKit's own command, and leave it out here"
    if entry["class"] not in CLASSES:
        raise UserError(f"{where}: VLMEvalKit scores it by {entry['class']}, not by {' or '.join(CLASSES)}; {instead}")
    if ways := [way for way in OWN_WAYS if way.lower() in name.lower()]:
        raise UserError(f"{where}: VLMEvalKit scores {ways[0]} in a way of its own, which is not done here; {instead}")
    if name.startswith(SECRET):
        raise UserError(f"{where}: its answers are not public; use the DEV file of the same benchmark")
    if missing := [key for key in ("url", "md5") if not entry.get(key)]:
        raise UserError(
            f"{where}: VLMEvalKit states no {missing[0]} for it, so no file can be told to be the official one; "
            "leave it out, or give it a rule of its own"
        )
    return entry


def _download(url: str, path: Path) -> str:
    """Write what lies at `url` to `path` and return its md5. Certificates are verified, proxies are those of the
    environment, and a transfer that broke off goes on where it stopped if the server can do that.

    Raises
    ------
    requests.RequestException
        If nothing comes, or it has broken off too often.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file, tqdm(desc=url.rpartition("/")[2], unit="B", unit_scale=True, mininterval=1.0) as bar:
        for attempt in range(1, ATTEMPTS + 1):
            # Compressed, neither the length nor the place to go on from would be the file's.
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={file.tell()}-"} if file.tell() else {})
            try:
                with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
                    answer.raise_for_status()
                    if file.tell() and answer.status_code != requests.codes.partial_content:
                        file.seek(0)
                        file.truncate()
                        digest = hashlib.md5(usedforsecurity=False)
                        bar.reset()
                    if length := answer.headers.get("Content-Length"):
                        bar.total = file.tell() + int(length)
                    for block in answer.iter_content(BLOCK):
                        file.write(block)
                        digest.update(block)
                        bar.update(len(block))
                    return digest.hexdigest()
            except requests.RequestException:
                # What has not even begun will hardly do so in a few seconds.
                if not file.tell() or attempt == ATTEMPTS:
                    raise
                time.sleep(PAUSE)
    raise AssertionError("every attempt returns or raises")


def _reason(error: requests.RequestException) -> str:
    """What went wrong, in a few words."""
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "the server's certificate cannot be verified (REQUESTS_CA_BUNDLE can name that of your network's proxy)"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if isinstance(error, requests.Timeout):
        return f"no answer for {PATIENCE:.0f} seconds"
    return "no connection"
