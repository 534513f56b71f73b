"""The environment that the README builds: other programs start in it, and folders of our packages' names do no harm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(*command: str, folder: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_accelerate_starts(tmp_path: Path) -> None:
    """Its console script imports timm and transformers, and with them torchvision, which ``import torch`` repairs.

    The model cards' code and the pages' (tests/families/test_card_code.py, tests/test_docs.py) start the same way.
    """
    (tmp_path / "program.py").write_text("import os; print('started', os.environ['ACCELERATE_USE_CPU'])")
    done = _run(_script("accelerate"), "launch", "--cpu", "--num_processes", "1", "program.py", folder=tmp_path)
    again = "is the package installed anew since its entry points changed?"
    assert done.stdout == "started True\n", f"{done.stderr[-2000:]}\n{again}"


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    """A folder with packages of a user's own, of the names of ours."""
    for name in ("algorithms", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = 1")
    return tmp_path


def test_the_console_script_finds_its_packages(in_the_way: Path) -> None:
    """In that folder, and with the folder on PYTHONPATH before ours."""
    done = _run(_script("diffusion-gym"), "--help", folder=in_the_way, path=f"{in_the_way}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "throughput" in done.stdout


def test_an_import_says_what_is_in_the_way(in_the_way: Path) -> None:
    (in_the_way / "benchmarks" / "__init__.py").unlink()
    (in_the_way / "benchmarks").rmdir()
    done = _run(sys.executable, "-m", "benchmarks", "--help", folder=in_the_way)
    assert done.returncode != 0
    assert f"{in_the_way / 'algorithms'} is in the way: Diffusion Gym needs its own 'algorithms'" in done.stderr
