"""The command line (train, compare, sample, pretrain, search, tables), and its suites, statistics and report."""

import importlib.util
from pathlib import Path


def _check_packages() -> None:
    """Raise ImportError if another folder or file hides one of our packages."""
    root = Path(__file__).parents[1]
    for name in ("diffusion_gym", "algorithms"):
        found = importlib.util.find_spec(name)
        place = None if found is None else next(iter(found.submodule_search_locations or ()), found.origin)
        if place is not None and Path(place).resolve() != (root / name).resolve():
            raise ImportError(
                f"{place} is in the way: Diffusion Gym needs its own {name!r}, which lies in {root}, but Python finds "
                "yours first. Start the command diffusion-gym, which looks beside itself, or rename yours, or start in "
                "another folder and without PYTHONPATH."
            )


_check_packages()
