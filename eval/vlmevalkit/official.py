"""VLMEvalKit's own table of benchmarks: which class scores each, where its file lies, and its md5."""

from __future__ import annotations

from eval.vlmevalkit.kit import kit


def official_table() -> dict[str, dict[str, str]]:
    """Name -> ``class``, and ``url`` and ``md5`` where VLMEvalKit gives them; for its other classes ``class`` alone.

    A name that two classes claim belongs to the first, as in its `build_dataset`.
    """
    modules = kit()
    # Below the first use of `kit`, which prepares the import.
    from vlmeval.dataset import DATASET_CLASSES

    table: dict[str, dict[str, str]] = {}
    for kind in DATASET_CLASSES:
        for name in kind.supported_datasets():
            entry = {"class": kind.__name__}
            if kind in (modules.choice, modules.yes_no):
                known = {"url": kind.DATASET_URL.get(name), "md5": kind.DATASET_MD5.get(name)}
                entry |= {key: value for key, value in known.items() if value}
            table.setdefault(name, entry)
    return table
