"""Lets a torchvision that was built for another torch be imported; all but its detection operators works.

The package index has no CPU build of torchvision. The build it has refuses to import beside a CPU torch
(``RuntimeError: operator torchvision::nms does not exist``), and open_clip, transformers and diffusers
import torchvision. Declaring the schemas of the two missing operators is enough for all of them, because
none calls a detection operator.
"""

import importlib
import importlib.util
import sys

import torch

_DECLARED: list[torch.library.Library] = []  # the declaration lives as long as the object does
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def repair_torchvision() -> None:
    """Import torchvision, declaring its missing operators if, and only if, they are what stops it.

    Does nothing where torchvision is absent, already imported or healthy.

    Raises:
        RuntimeError: torchvision fails to import for any other reason.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}{_SCHEMA}")
    _DECLARED.append(library)
    importlib.import_module("torchvision")
