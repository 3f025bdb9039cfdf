"""The small files of which results are made: their names, without anything that takes time to load."""

from __future__ import annotations

METRICS, ITEMS = "metrics.csv", "items.parquet"
# What is stored beside them, by the name under which results ask for it; each is written by a rule of its own.
TABLES = {
    "benchmarks": "benchmarks.csv",
    "words": "words.parquet",
    "tokens": "tokens.parquet",
    "mutual": "mutual.parquet",
    "training": "training.parquet",
    "costs": "costs.csv",
}
QUALITY, PROVENANCE = "reference.json", "provenance.yaml"
# Made from the others, and what the paper reported.
FITS, REPORTED = "fits.json", "results/reported"
FILES = (METRICS, ITEMS, *TABLES.values(), QUALITY, PROVENANCE)
