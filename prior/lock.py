"""One process at a time: a lock that names its owner, so that others can verify whether that still lives.

Jobs that outlive the Snakemake that started them are the usual way to two trainers of one run. A file lock of the
system would not do: on the shared file systems of clusters it is often off, or unknown to other nodes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from prior import slurm, stopping
from prior.errors import UserError

# Seconds between looks at the lock, by its owner and by those who wait for it.
INTERVAL = 1.0


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock within the block; wait for an owner that lives, replace one that does not.

    An owner that finds itself replaced ends at once, since it was taken for dead: after a moment in which it would
    have seen that, its successor goes on.

    Raises
    ------
    UserError
        If nobody can tell from here whether the owner lives.
    Stopped
        If this process has to end before it got the lock.
    """
    me = _myself()
    _acquire(file, me)
    done = threading.Event()
    threading.Thread(target=_guard, args=(file, me, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if _owner(file) == me:
            file.unlink(missing_ok=True)


def _acquire(file: Path, me: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        # Unlike opening a new file, linking one is atomic on network file systems, and its content is there.
        if _put(file, me, os.link):
            return
        owner = _owner(file)
        if owner == me:
            # Network file systems may report that a link exists when it is this one that was made.
            return
        if owner is None:
            time.sleep(INTERVAL / 10)
            continue
        if not _lives(file, owner, me):
            print(f"{file.parent}: taking the place of {_name(owner)}, which left it unfinished", file=sys.stderr)
            _put(file, me, os.replace)
            # The former owner, should it live after all, and any other successor have seen it by then and are gone.
            time.sleep(3 * INTERVAL)
            if _owner(file) == me:
                return
            continue
        if not told:
            print(f"{file.parent}: waiting for {_name(owner)}, which is at work there", file=sys.stderr, flush=True)
            told = True
        if why := stopping.reason():
            raise stopping.Stopped(f"{file.parent}: {why}, while waiting for {_name(owner)}")
        time.sleep(INTERVAL)


def _put(file: Path, me: dict[str, Any], how: Callable[[Path, Path], None]) -> bool:
    """Put a lock in its place as a whole; False if that is for an empty place, and there is one."""
    own = file.with_name(f"{file.name}.{me['id']}")
    try:
        own.write_text(json.dumps(me), encoding="utf-8")
        how(own, file)
        return True
    except FileExistsError:
        return False
    finally:
        own.unlink(missing_ok=True)


def _guard(file: Path, me: dict[str, Any], done: threading.Event) -> None:
    """End this process when another one has taken its lock."""
    while not done.wait(INTERVAL):
        try:
            lost = _owner(file) != me
        except OSError:
            continue
        if lost and not done.is_set():
            print(f"{file.parent}: another process has taken over; ending", file=sys.stderr, flush=True)
            os._exit(stopping.EXIT_CODE)


def _myself() -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "host": _host(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "job": slurm.own_job(),
    }


def _host() -> str:
    """The machine's name; what SLURM calls it, where several nodes share one."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


def _owner(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{file} names no process that holds it; remove this file if none is at work there") from None


def _lives(file: Path, owner: dict[str, Any], me: dict[str, Any]) -> bool:
    if owner["host"] == me["host"]:
        return not _verified_dead(owner)
    if owner["job"] is not None and owner["job"] == me["job"]:
        # SLURM has started this job again: on a node that it lost sight of, the former start may go on for a while.
        return False
    if owner["job"] is None:
        raise UserError(
            f"{file}: {_name(owner)} may be at work there, which cannot be verified from {me['host']}; "
            "end it, or remove this file if it has ended"
        )
    try:
        return slurm.at_work(owner["job"])
    except slurm.NoAnswer:
        # It may be at work; the controller will be back.
        return True


def _verified_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and does so no more."""
    if owner["host"] != _host():
        return False
    try:
        process = psutil.Process(owner["pid"])
        # A process id is used again after a while, but not with the same time of birth.
        another = abs(process.create_time() - owner["started"]) > 1.0
        return another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _name(owner: dict[str, Any]) -> str:
    job = f" of job {owner['job']}" if owner["job"] else ""
    return f"process {owner['pid']}{job} on {owner['host']}"
