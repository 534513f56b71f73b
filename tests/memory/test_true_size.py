"""Models at their true size, with random weights, through the command line: the printed estimate is the peak."""

import runpy
from pathlib import Path

import psutil
import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tools" / "true_size.py"), run_name="true_size")
#: Estimate over peak stays within this.
WITHIN = 0.15


@pytest.mark.long
@pytest.mark.parametrize("name", TOOL["CASES"])
def test_the_estimate_is_the_peak(name: str, tmp_path: Path) -> None:
    """Without what Python and its libraries hold, which the same model tiny shows."""
    needed, free = TOOL["CASES"][name].needed, psutil.virtual_memory().available / 1e9
    if free < needed:
        pytest.skip(f"needs {needed} GB of free memory, there are {free:.0f}")
    assert TOOL["share"](TOOL["measured"](name, tmp_path)) == pytest.approx(1, abs=WITHIN)


def test_the_page_shows_what_was_measured() -> None:
    """After ``python docs/tools/true_size.py NAME``; what was measured with an estimate that was off is no result."""
    results = TOOL["read_results"]()
    assert TOOL["written"]() == TOOL["table"](results)
    for name, found in results.items():
        assert TOOL["share"](found) == pytest.approx(1, abs=WITHIN), name
