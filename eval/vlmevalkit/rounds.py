"""VLMEvalKit's own loop, run again and again around one checkpoint, for `eval.bench`, which starts this as a process.

Each line of standard input is the path of a benchmark; each is answered by a line of JSON: the ``seconds`` that
`infer_data_job` took over it, and its ``predictions``. Once all is loaded, a line of JSON says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from eval import tsv
from eval.vlmevalkit.kit import dataset, fresh_folder, kit
from eval.vlmevalkit.prompts import export


def infer(model: Any, asked: Any) -> tuple[float, list[str]]:
    """One round over a data set: the seconds that it took, and the predictions."""
    from vlmeval.inference import infer_data_job

    table = asked.data
    with tempfile.TemporaryDirectory() as folder:
        # It takes the pictures out of the table.
        asked.data = table.copy()
        start = time.perf_counter()
        infer_data_job(model, folder, "model", asked)
        seconds = time.perf_counter() - start
        asked.data = table
        (written,) = Path(folder).glob("*.tsv")
        return seconds, list(tsv.read_benchmark(written)["prediction"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.vlmevalkit.rounds", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("benchmark", type=Path, nargs="+", help="TSV files; the prompts are written beside them")
    given = parser.parse_args()
    # What VLMEvalKit prints must not come among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for path in given.benchmark:
        export(path, path.with_suffix(".jsonl"), path.parent / "prompts", "generate", official=True)
    modules = kit()
    from eval.vlmevalkit.model import Checkpoint

    with fresh_folder(modules) as folder:
        model = Checkpoint(given.checkpoint, given.max_new_tokens, given.threads)
        opened = {}
        for path in given.benchmark:
            frame = tsv.read_benchmark(path)
            opened[str(path)] = dataset(modules, tsv.kind_of(path.stem, list(frame.columns)), frame, folder)
            # Benchmarks of one kind have one name, and must not find each other's pictures.
            opened[str(path)].img_root = str(folder / "pictures" / path.stem)
        print(json.dumps(len(opened)), file=answers, flush=True)
        for line in sys.stdin:
            seconds, predictions = infer(model, opened[line.rstrip("\n")])
            print(json.dumps({"seconds": seconds, "predictions": predictions}), file=answers, flush=True)


if __name__ == "__main__":
    main()
