"""Measurements of speed and memory, each against a rival that does the same work: ``python -m eval.bench``."""
