"""Importing is quick and quiet, and the three packages import in one direction only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "diffusers",
    "transformers",
    "stable_baselines3",
    "open_clip",
    "peft",
    "torchvision",
    "vl_convert",
    "PIL.ImageFont",
)
#: What each package must not import: those built upon it.
ABOVE = {
    "diffusion_gym": ("algorithms", "benchmarks", "tests"),
    "algorithms": ("benchmarks", "tests"),
    "benchmarks": ("tests",),
}


def _run(code: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = _run(f"import sys, diffusion_gym; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_exact_environment_in_a_fresh_process_by_module_name() -> None:
    """Without the import and without conftest's repair of torchvision, and still without the learning libraries."""
    code = """
import sys, gymnasium
arguments = {"model": "exact-gaussian", "reward": "exact-linear", "num_inference_steps": 2}
env = gymnasium.make("diffusion_gym:DiffusionDenoise-v0", **arguments)
observation, info = env.reset(seed=0)
for _ in range(2):
    observation, reward, done, _, info = env.step(observation["latent"])
assert done and reward != 0
print([name for name in ("stable_baselines3", "open_clip", "peft") if name in sys.modules])
"""
    assert _run(code).strip() == "[]"


def test_public_names_exist() -> None:
    import diffusion_gym

    assert all(hasattr(diffusion_gym, name) for name in diffusion_gym.__all__)
    assert diffusion_gym.__all__ == sorted(diffusion_gym.__all__, key=lambda name: (not name.isupper(), name))


def _imports(file: Path) -> Iterator[str]:
    """Yield the top-level packages that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import of more than one dot could climb out of the package; none is used.
            assert node.level == 0, f"{file}:{node.lineno} is a relative import"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", sorted(ABOVE))
def test_imports_never_run_upward(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in _imports(file)
        if name in ABOVE[package]
    ]
    assert wrong == []


def test_environments_stay_clear_of_the_learning_shell() -> None:
    """Only the shell in ``algorithms`` knows Stable-Baselines3; the environment package never does."""
    wrong = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "diffusion_gym").rglob("*.py")
        if "stable_baselines3" in set(_imports(file))
    ]
    assert wrong == []
