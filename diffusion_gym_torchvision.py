"""Lets a torchvision that was built for another torch be imported; all but its detection operators works.

The package index has no CPU build of torchvision, and the build it has refuses to be imported beside a CPU torch
(``RuntimeError: operator torchvision::nms does not exist``). open_clip and timm require torchvision, and transformers
and diffusers import it wherever it is installed, so none of them could be imported. Declaring the schemas of the two
missing operators is enough for all four, because none calls a detection operator.

``import torch`` calls this by itself, in every process of the environment that this package is installed in (entry
point ``torch.backends`` of pyproject.toml), so that code which never imports this package runs there too: what is
exported, timm, ``accelerate launch``. Hence a module of its own, which imports only torch. This package calls it again
before it needs torchvision, for a torch that does not: 2.4, or one that is set not to load extensions.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # where this module is imported before torch, torch needs it whole while it is imported itself
    import torch

_DECLARED: list[torch.library.Library] = []  # the declaration lives as long as the object does
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def repair_torchvision() -> None:
    """Declare torchvision's missing operators if, and only if, its own cannot be loaded beside this torch.

    Does nothing where torchvision is absent, already imported or healthy.
    """
    import torch  # calls this by itself, which then has nothing left to do

    if _DECLARED or "torchvision" in sys.modules or _loads():
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}{_SCHEMA}")
    _DECLARED.append(library)


def repair_beside_cpu_torch() -> None:
    """Do so only for a torch without GPU support; for the others the index has the right torchvision."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        repair_torchvision()


def _loads() -> bool:
    """Whether torchvision is absent, or its compiled operators, which its import loads too, can be loaded."""
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None:
        return True
    libraries = [file for folder in found.submodule_search_locations or () for file in Path(folder).glob("_C.*")]
    try:
        for file in libraries:
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return bool(libraries)
