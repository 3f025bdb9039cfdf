"""Measuring: benchmarks, predictions, scores, statistics, tables, figures and the report."""

import os
from pathlib import Path

# Before matplotlib's first import, here or by VLMEvalKit: its files are kept in this checkout, not in the user's home.
os.environ.setdefault("MPLCONFIGDIR", str(Path(__file__).resolve().parents[1] / ".cache" / "matplotlib"))
