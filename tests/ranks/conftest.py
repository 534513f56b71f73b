"""What the files of tests have in common: each names a ``PROGRAM``, which starts ranks and leaves what they report."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
Reports = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def program_environment() -> dict[str, str]:
    """Of programs that import this checkout."""
    return {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the exact model's scenarios leave their files."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def exact_reports(request: pytest.FixtureRequest, program_environment: dict[str, str], folder: Path) -> Reports:
    """What each rank of every scenario on the exact model reports."""
    return _run(request.module.PROGRAM, "exact", folder, program_environment)


@pytest.fixture(scope="module")
def sd_reports(
    request: pytest.FixtureRequest,
    program_environment: dict[str, str],
    tiny_sd: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reports:
    """The same on a tiny Stable Diffusion."""
    folder = tmp_path_factory.mktemp("sd-ranks")
    (folder / "tiny_sd").write_text(tiny_sd, encoding="utf-8")
    return _run(request.module.PROGRAM, "stable-diffusion", folder, program_environment)


def _run(program: str, kind: str, folder: Path, environment: dict[str, str]) -> Reports:
    command = [sys.executable, str(HERE / program), kind, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "reports.pt")
