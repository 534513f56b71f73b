"""A run that is killed, or whose disk is full, is resumed and ends equal bit for bit to one left in peace.

What breaks it is ``breaking.py``, a program that anyone can run; here it is run briefly, and by ``make test-slow`` in
full: 40 kills at random moments, a kill before every call that changes a file, no space at every call and write.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import diffusion_gym
from algorithms import ALGORITHMS

PROGRAM = Path(__file__).with_name("breaking.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them"),
]


def broken(*words: str, timeout: int) -> dict[str, Any]:
    """Run the program, and return what it counted; it fails where a run ends otherwise than one left in peace."""
    environment = {**os.environ, "PYTHONPATH": str(Path(diffusion_gym.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    counted: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(counted)
    return counted


@pytest.fixture(scope="module")
def briefly() -> dict[str, Any]:
    """A few of each."""
    return broken("kills", "full", "mount", "--count", "3", "--every", "27", "--algorithms", "ddpo-is", timeout=300)


def test_killed_at_a_few_moments(briefly: dict[str, Any]) -> None:
    assert briefly["kills"]["survived"] >= 3
    assert briefly["kills"]["runs_compared"] >= 1


def test_a_full_disk_at_a_few_writes(briefly: dict[str, Any]) -> None:
    assert briefly["full"]["failed"] >= 5
    assert briefly["full"]["with_a_checkpoint_before"] >= 2


def test_a_file_system_that_is_really_full(briefly: dict[str, Any]) -> None:
    if "skipped" in briefly["mount"]:
        pytest.skip(briefly["mount"]["skipped"])
    assert briefly["mount"]["failed"] >= 1


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(seed: int) -> None:
    """Every algorithm of the registry, in turn."""
    counted = broken("kills", "--count", "40", "--seed", str(seed), timeout=3600)["kills"]
    assert counted["survived"] >= 40
    assert counted["runs_compared"] >= len(ALGORITHMS)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["ddpo-is", "rwr"])
def test_killed_before_every_call_that_changes_a_file(algorithm: str) -> None:
    counted = broken("calls", "--algorithms", algorithm, timeout=3600)["calls"]
    assert counted["survived"] == counted["calls"] > 80


@pytest.mark.long
def test_no_space_at_every_call_and_write() -> None:
    counted = broken("full", timeout=3600)["full"]
    assert counted["failed"] == counted["calls_and_writes"] > 100
    assert counted["harmless"] < counted["failed"] / 4
    assert counted["with_a_checkpoint_before"] > 80


@pytest.mark.long
def test_a_small_file_system() -> None:
    counted = broken("mount", "--count", "16", timeout=3600)["mount"]
    if "skipped" in counted:
        pytest.skip(counted["skipped"])
    assert counted["failed"] >= 8
