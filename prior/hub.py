"""What comes from the Hugging Face hub: each repository at the one commit that the preset's lock file names.

The first download from a repository writes the commit that its main branch is at into the lock file; from then on that
commit is taken, whatever becomes of the branch. Tokens, caches, mirrors and offline mode are set by the hub's own
environment variables (``HF_TOKEN``, ``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``).
"""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from prior.errors import TryAgain, UserError
from prior.files import NO_ROOM, link_or_copy, whole, write_text
from prior.lock import locked

Kind = Literal["model", "dataset"]

# What transformers reads of a model, at the top of its repository: neither pickles nor code, nor a second copy of the
# weights in another layout, such as Mistral's consolidated.safetensors.
SETTINGS = ["*.json", "tokenizer.model", "merges.txt", "vocab.txt"]
WEIGHTS = ["model.safetensors", "model-*.safetensors"]
# Where a repository has no safetensors, as that of CLIP ViT-L/14-336: read as weights alone, and converted at once.
PICKLE = "pytorch_model.bin"

LINE = re.compile(r"(\S+): ([0-9a-f]{40})")
HEADER = """\
# What this preset fetches from the Hugging Face hub, at which commit. A repository without a line is taken, and locked,
# as it stands at the next download.
"""


def is_local(source: str) -> bool:
    """Whether a source in a valid preset is a folder; otherwise it is the hub id of a model."""
    return Path(source).is_dir()


def fetch_model(repo: str, folder: Path, lock: Path, weights: bool = True) -> None:
    """Put a model at its locked commit into a folder: settings, tokenizer and, if asked for, weights in safetensors.

    The files are in the hub's cache as well, where other presets find them; on the same disk they take no room twice.

    Parameters
    ----------
    repo
        Hub id, ``organisation/name``.
    folder
        Where to; it is there when it is whole.
    lock
        The preset's lock file (`prior.presets.lock_file`); a line is added where it has none for the repository.

    Raises
    ------
    UserError
        If the repository, its locked commit or its safetensors cannot be had.
    """
    from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

    patterns = SETTINGS + (WEIGHTS if weights else [])
    with _explained(repo, "model", lock):
        revision = _revision(repo, "model", lock)
        wanted: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": "*/*"}
        if not constants.is_offline_mode():
            _verify(_planned(repo, wanted), revision, f"{lock}: {repo}", Path(constants.HF_HUB_CACHE))
        snapshot = Path(snapshot_download(repo, **wanted))
        with whole(folder) as temporary:
            temporary.mkdir()
            # The cache may hold more of the repository than was asked for here.
            for file in sorted(snapshot.iterdir()):
                if _matches(file, patterns):
                    link_or_copy(file, temporary / file.name)
            if weights and not any(_matches(file, WEIGHTS) for file in temporary.iterdir()):
                try:
                    _convert(Path(hf_hub_download(repo, PICKLE, revision=revision)), temporary / "model.safetensors")
                except (errors.EntryNotFoundError, pickle.UnpicklingError) as error:
                    found = "none" if isinstance(error, errors.EntryNotFoundError) else "more than weights"
                    raise UserError(
                        f"model '{repo}' has no weights in safetensors at {revision}, where {lock} locks it, and "
                        f"{found} in {PICKLE}; name a repository that has, a folder, or in the lock file a commit "
                        "that has (the hub's bot proposes conversions as pull requests)"
                    ) from None


def fetch_file(repo: str, name: str, path: Path, lock: Path) -> None:
    """Put one file of a dataset repository, at its locked commit, to `path`; the hub's cache is read but not filled.

    Parameters
    ----------
    repo
        Hub id of the dataset, ``organisation/name``.
    name
        The file's path in the repository.
    path
        Where to; it is there when it is whole.
    lock
        As in `fetch_model`.

    Raises
    ------
    UserError
        If the repository, its locked commit or the file cannot be had.
    """
    from huggingface_hub import constants, hf_hub_download

    with _explained(repo, "dataset", lock), _scratch(path) as scratch:
        revision = _revision(repo, "dataset", lock)
        wanted: dict[str, Any] = {"repo_type": "dataset", "revision": revision}
        if not constants.is_offline_mode():
            wanted["local_dir"] = scratch
            planned = [hf_hub_download(repo, name, dry_run=True, **wanted)]
            _verify(planned, revision, f"{lock}: {_key(repo, 'dataset')}", path.parent)
        file = hf_hub_download(repo, name, **wanted)
        with whole(path) as temporary:
            link_or_copy(Path(file), temporary)


def locked_revisions(lock: Path) -> dict[str, str]:
    """Commits by repository, ``datasets/`` before a dataset's; none if there is no lock file yet.

    Raises
    ------
    UserError
        If a line is not ``repository: commit``, or names a repository a second time.
    """
    found: dict[str, str] = {}
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None or match[1] in found:
            wrong = "names a repository a second time" if match else "is not `repository: commit of 40 hexadecimals`"
            raise UserError(f"{lock} line {number} {wrong}; mend or remove it")
        found[match[1]] = match[2]
    return found


def _revision(repo: str, kind: Kind, lock: Path) -> str:
    """The locked commit of a repository; locked now if this is the first time."""
    from huggingface_hub import HfApi

    key = _key(repo, kind)
    if key in (known := locked_revisions(lock)):
        return known[key]
    with locked(lock.with_name(f".{lock.name}.owner")):
        # Another process may have been first, and two have to take the same.
        if key not in (known := locked_revisions(lock)):
            known[key] = HfApi().resolve_revision(repo, repo_type=kind).resolved
            write_text(lock, HEADER + "".join(f"{name}: {known[name]}\n" for name in sorted(known)))
        return known[key]


def _key(repo: str, kind: Kind) -> str:
    return repo if kind == "model" else f"datasets/{repo}"


def _planned(repo: str, wanted: dict[str, Any]) -> list[Any]:
    """The files that a download of a model consists of, with their commits and sizes."""
    from huggingface_hub import errors, snapshot_download

    try:
        return list(snapshot_download(repo, dry_run=True, **wanted))
    except errors.DryRunError as error:
        # It hides what the hub said.
        raise error.__cause__ or error from None


def _verify(planned: Sequence[Any], revision: str, locked: str, folder: Path) -> None:
    """Refuse a download, before it begins, of another commit than the locked one, or one that finds no room."""
    for file in planned:
        if file.commit_hash != revision:
            raise UserError(
                f"{locked} is locked at {revision}, but the hub gives {file.commit_hash} for it; "
                "ask a hub that keeps old commits (HF_ENDPOINT), or remove the line"
            )
    needed = sum(file.file_size or 0 for file in planned if file.will_download)
    existing = next(place for place in [folder, *folder.parents] if place.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise UserError(
            f"{locked} takes {needed / 1e9:.1f} GB, but {folder} has room for {free / 1e9:.1f} GB; make room "
            "(HF_HOME moves the hub's cache)"
        )


def _convert(pickled: Path, target: Path) -> None:
    """Weights that were pickled, as safetensors; nothing but tensors is unpickled.

    Raises
    ------
    pickle.UnpicklingError
        If there is more in it than tensors.
    """
    import torch
    from safetensors.torch import save_file

    weights = torch.load(pickled, map_location="cpu", weights_only=True)
    # Tensors may share memory or lie in it crosswise, which the format does not allow.
    save_file({name: part.clone().contiguous() for name, part in weights.items()}, target, metadata={"format": "pt"})


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder beside `path` for its download; what a killed process left there is cleared."""
    folder = path.with_name(f".{path.name}.download")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _explained(repo: str, kind: Kind, lock: Path) -> Iterator[None]:
    """What the hub refuses, and what keeps us from reaching it, in one line."""
    import httpx2
    from huggingface_hub import constants, errors

    what = f"{kind} '{repo}'"
    try:
        yield
    except errors.HFValidationError:
        raise UserError(f"{what} is neither a folder nor a hub id; write a hub id as organisation/name") from None
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{_key(repo, kind)}"
        raise UserError(f"{what} is gated; ask for access at {page}, and set HF_TOKEN to a token that has it") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what} is not on the hub, or private; mend its name, or set HF_TOKEN to a token that may read it"
        ) from None
    except errors.RevisionNotFoundError:
        revision = locked_revisions(lock).get(_key(repo, kind))
        if revision is None:
            raise UserError(f"{what} is empty; name another") from None
        raise UserError(
            f"{lock}: {_key(repo, kind)} is locked at {revision}, which the hub does not have; "
            "restore the line, or remove it to lock the latest"
        ) from None
    except errors.RemoteEntryNotFoundError as error:
        file = error.response.url.path.rpartition("/resolve/")[2].partition("/")[2]
        raise UserError(f"{what} has no file '{file}' where {lock} locks it; mend the file's name") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise UserError(f"{what}: the hub answers {status}; mend HF_TOKEN") from None
        raise TryAgain(f"{what}: the hub answers {status}; start again later") from None
    except (httpx2.HTTPError, errors.RevisionResolutionError, errors.XetDownloadError, OSError) as error:
        # The hub's client also raises OSErrors of its own, without a number.
        if isinstance(error, OSError) and error.errno is not None:
            where = error.filename or constants.HF_HUB_CACHE
            remedy = "make room" if error.errno in NO_ROOM else "make it writable"
            raise UserError(f"{what}: {where}: {error.strerror}; {remedy} and start again") from None
        if constants.is_offline_mode():
            raise UserError(
                f"{what} is not in the hub's cache at the locked commit, and HF_HUB_OFFLINE is set; "
                "fetch it once from a machine with a network"
            ) from None
        raise TryAgain(
            f"{what}: the connection to {constants.ENDPOINT} failed ({type(error).__name__}); start again later"
        ) from None
