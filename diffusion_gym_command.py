"""The command ``diffusion-gym``, which finds its packages whatever folders of the same names lie about."""

import sys
from pathlib import Path


def main() -> int:
    """Run :func:`benchmarks.__main__.main` of the ``benchmarks`` beside this file; return the exit status.

    This file's folder goes first: PYTHONPATH may hold a folder with an ``algorithms`` or ``benchmarks`` of the user's
    own, and processes that a run starts take the path over.
    """
    sys.path.insert(0, str(Path(__file__).parent))
    from benchmarks.runs.stopping import quiet_ctrl_c

    quiet_ctrl_c()
    from benchmarks.__main__ import main

    return main()
