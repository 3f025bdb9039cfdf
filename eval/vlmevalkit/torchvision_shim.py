"""Make torchvision importable beside a CPU build of torch, for VLMEvalKit's process only."""

from __future__ import annotations

import sys

_LIBRARIES: list[object] = []


def import_torchvision() -> bool:
    """Import torchvision, having declared the operators that it misses where torch's build is not the one it expects.

    Its wheel is compiled against a CUDA build of torch. Beside a CPU build its C++ operators do not load, and the
    import stops at registering `nms`. Declaring two names is enough for its transforms; calling `nms` still fails.

    Returns
    -------
    True if the operators had to be declared.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return False
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    # The operators live as long as this object.
    _LIBRARIES.append(library)
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return True
