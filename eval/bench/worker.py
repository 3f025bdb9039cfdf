"""One side of a comparison in a process of its own, which `eval.bench.compare` starts.

The side is built first. Then each line of standard input asks for a round and is answered by a line of JSON: what the
side says of it, ``peak``, the greatest memory so far in bytes, and ``matmul``, what large
matrix products reach here, if asked.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.bench.worker", description=__doc__)
    parser.add_argument("work", choices=("training", "scoring"))
    parser.add_argument("--size", required=True)
    parser.add_argument("--loop", choices=("ours", "ntp", "prior", "cal", "stock"), required=True)
    parser.add_argument("--captions", type=int, default=0, help="how many are scored")
    parser.add_argument("--times", type=int, default=1, help="how many times over they are scored")
    parser.add_argument("--matmul", type=int, help="measure products of square matrices with so many rows, too")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    # What is printed on the way must not come among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import torch

    from eval.bench import sides
    from eval.bench.sizes import find

    torch.set_num_threads(given.threads)
    size = find(given.size)
    if given.work == "training":
        side = sides.training(size, given.loop)
    else:
        side = sides.scoring(size, given.loop, given.captions, given.times)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer(about())
    for _ in sys.stdin:
        gc.collect()
        row = side()
        row["peak"] = peak()
        gc.collect()
        if given.matmul:
            # Beside a model worth measuring these matrices are small: they fit where the round's own have been.
            row["matmul"] = matmul(given.matmul, torch.bfloat16 if size.bf16 else torch.float32)
        answer(row)


def about() -> dict[str, str]:
    """The versions that compute here, and the accelerator if there is one."""
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return versions | ({"machine": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def peak() -> int:
    """The greatest memory of this process so far, in bytes: of its accelerator where it has one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matmul(side: int, dtype: Any, times: int = 3) -> float:
    """Operations per second that products of square matrices reach: the best of some."""
    import torch

    from eval.bench.sides import now

    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other, product = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(3))
    best = float("inf")
    for _ in range(times):
        start = now()
        torch.mm(one, other, out=product)
        best = min(best, now() - start)
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
