"""Calls of Snakemake as a user makes them, in a folder of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command(folder: Path, preset: str, *more: str, where: Sequence[str] = ("--cores", "2")) -> list[str]:
    program = str(Path(sys.executable).with_name("snakemake"))
    return [
        program, "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), *where,
        "--rerun-incomplete", "--show-failed-logs", *more, "--config", f"preset={preset}",
    ]  # fmt: skip


def snakemake(folder: Path, preset: str, *more: str) -> str:
    done = subprocess.run(command(folder, preset, *more), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def refused(folder: Path, preset: str, *more: str) -> list[str]:
    """What is said, line by line, by a command that stops at a user's mistake."""
    done = subprocess.run(command(folder, preset, *more), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stderr.splitlines()


def planned(folder: Path, preset: str, *targets: str) -> dict[str, str]:
    """Rules that a dry run would execute, each with all that it would write."""
    listed = snakemake(folder, preset, *targets, "--dry-run", "--quiet", "host", "progress")
    outputs: dict[str, str] = {}
    rule = ""
    for line in listed.splitlines():
        if line.startswith(("rule ", "localrule ")):
            rule = line.split()[1].rstrip(":")
            outputs.setdefault(rule, "")
        elif line.startswith("    output: "):
            outputs[rule] += line
    return outputs
