"""The cluster of the tests, and a count of what was done to it.

Where `PRIOR_SLURM` is set, as in CI, SLURM is installed and its absence is a failure; elsewhere tests are skipped with
the reason.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, install, missing
from tests.slurm.work import Make, Work

INJECTED: Counter[str] = Counter()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with started() as cluster:
        yield cluster


@pytest.fixture
def accounted() -> Iterator[Cluster]:
    """Another one, with accounting."""
    with started(port=16900, accounting=True) as cluster:
        yield cluster


@contextmanager
def started(**options: Any) -> Iterator[Cluster]:
    if os.environ.get("PRIOR_SLURM"):
        if missing():
            install()
        assert not missing(), missing()
    elif why := missing():
        pytest.skip(f"{why}; PRIOR_SLURM=1 installs it with apt-get")
    # Not in pytest's folder, which is closed to others: munge wants a path that is open to all.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder), **options)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def injected() -> Counter[str]:
    """How often each fault was injected; printed at the end."""
    return INJECTED


@pytest.fixture
def make(tmp_path: Path, cluster: Cluster, tiny: tuple[Path, str]) -> Make:
    """Makes folders in which a training is to be added to what `tiny` has left."""

    def work(name: str = "work", **options: str) -> Work:
        return Work(tmp_path / name, cluster, tiny, **options)

    return work


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster, tiny: tuple[Path, str]) -> Work:
    """That training with nothing done to it."""
    work = Work(tmp_path_factory.mktemp("undisturbed") / "work", cluster, tiny)
    work.finish(work.start())
    assert len(work.submitted()) == 1 and not work.state.exists()
    return work


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if INJECTED:
        terminalreporter.section("faults injected into a training under SLURM")
        for fault, times in INJECTED.items():
            terminalreporter.line(f"{times} x {fault}")
