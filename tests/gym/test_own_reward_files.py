"""Rewards from files: what lies beside them can be imported, and nobody else's imports change."""

import pickle
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import algorithms
from diffusion_gym.rewards import RewardError, evaluate_reward, from_trl, resolve_reward, reward_name

IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def clean_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the modules and folders of a test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def scores_of(file: Path) -> list[float]:
    return evaluate_reward(resolve_reward(f"{file}:score"), IMAGES, ["a", "b"]).tolist()


FILES = {
    "mine.py": """
import dataclasses
from pathlib import Path
from typing import Any
import own_helper
from own_package import inside
import own_package.inside as again

@dataclasses.dataclass
class Weights:
    a: float = own_helper.A

def score(images, prompts):
    import own_late
    assert inside is again
    data = float((Path(__file__).parent / "data.txt").read_text())
    return [Weights().a + inside.B + own_late.C + data] * len(images)
""",
    "own_helper.py": "from own_late import C\nA = 1.0 + 0 * C\n",
    "own_late.py": "C = 100.0\n",
    "own_package/__init__.py": "",
    "own_package/inside.py": "B = 10.0\n",
    "data.txt": "1000",
}


def test_neighbours_are_imported_at_the_top_and_while_it_scores(tmp_path: Path) -> None:
    assert scores_of(write(tmp_path, FILES) / "mine.py") == [1111.0, 1111.0]


def test_files_and_neighbours_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """Each has its own; both go on scoring beside each other, and can be pickled."""
    other = {**FILES, "own_helper.py": "from own_late import C\nA = 2.0 + 0 * C", "own_late.py": "C = 200.0"}
    other["own_package/inside.py"] = "B = 20.0"
    one, two = write(tmp_path / "one", FILES), write(tmp_path / "two", other)
    rewards = [resolve_reward(f"{folder / 'mine.py'}:score") for folder in (one, two)]
    for _ in range(2):
        assert [evaluate_reward(reward, IMAGES, ["a", "b"])[0].item() for reward in rewards] == [1111.0, 1222.0]
    assert [pickle.loads(pickle.dumps(reward)) for reward in rewards] == rewards


def test_neighbours_hide_nothing_from_others(tmp_path: Path) -> None:
    """Not this project's packages, Python's modules, installed ones, or the one that the file is called like."""
    wrong = "raise AssertionError('a neighbour in place of the real one')"
    files = {"algorithms/__init__.py": "MINE = 5.0", "random.py": wrong, "yaml.py": "MINE = 6.0", "torch.py": ""}
    files["torch.py"] = "import torch, random, algorithms, yaml\ndef score(images, prompts):\n"
    files["torch.py"] += "    return torch.full((len(images),), algorithms.MINE + yaml.MINE)\n"
    assert scores_of(write(tmp_path, files) / "torch.py") == [11.0, 11.0]
    assert sys.modules["torch"] is torch
    assert sys.modules["random"] is random
    assert sys.modules["algorithms"] is algorithms
    assert "MINE" not in vars(sys.modules.get("yaml", algorithms))


def test_a_broken_neighbour_names_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"broken.py": "import own_broken\n", "own_broken.py": "1 / 0\n"})
    with pytest.raises(ValueError, match=r"the reward file '.*broken\.py' does not run: ZeroDivisionError.*line 1"):
        resolve_reward(f"{tmp_path / 'broken.py'}:score")


def test_processes_that_it_starts_can_import_it(tmp_path: Path) -> None:
    """Spawned ones are given sys.path, and the names of modules."""
    code = "def score(images, prompts):\n    return [1.0] * len(images)\n"
    reward = resolve_reward(f"{write(tmp_path, {'own_spawner.py': code}) / 'own_spawner.py'}:score")
    assert (reward.__module__, sys.path[-1]) == ("own_spawner", str(tmp_path))


# ---- functions that were written for trl


def brightness(
    images: Tensor, prompts: tuple[str, ...], metadata: tuple[dict[str, float], ...]
) -> tuple[object, object]:
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    signs = torch.tensor([row.get("sign", 1.0) for row in metadata])
    return signs * images.mean((1, 2, 3)), {"kept": "not"}


HALF = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 3, 8, 4)


def test_a_function_of_trl_is_a_reward() -> None:
    reward = from_trl(brightness)
    assert reward_name(reward) == "brightness"
    assert evaluate_reward(reward, HALF, ["a", "b"]).tolist() == [0.5, 0.5]
    assert evaluate_reward(resolve_reward({reward: 2.0}), HALF, ["a", "b"]).tolist() == [1.0, 1.0]
    assert pickle.loads(pickle.dumps(reward)).name == "brightness"


def test_metadata_go_by_the_prompts_text() -> None:
    reward = from_trl(brightness, {"a": {"sign": 1.0}, "b": {"sign": -1.0}})
    assert evaluate_reward(reward, HALF, ["a", "b"]).tolist() == [0.5, -0.5]
    with pytest.raises(RuntimeError, match="metadata, but none of the prompt 'c'"):
        evaluate_reward(reward, HALF, ["a", "c"])


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([1.0, 2.0]),
        np.array([1.0, 2.0]),
        [1, 2],
        {"avg": [1, 2], "jpeg": [5, 5]},
        {"aesthetic": np.array([1.0, 2.0])},
    ],
)
def test_scores_of_trl_and_flow_grpo(scores: object) -> None:
    reward = from_trl(lambda images, prompts, metadata: (scores, {}))
    assert evaluate_reward(reward, HALF, ["a", "b"]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.tensor([1.0, 2.0]), r"expected a pair \(scores, metadata\) as for trl, got Tensor"),
        (({"a": [1, 2], "b": [1, 2]}, {}), r"expected the total under 'avg', or a single score; got \['a', 'b'\]"),
        (({}, {}), r"expected the total under 'avg', or a single score; got \[\]"),
    ],
)
def test_other_results_are_refused(result: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        evaluate_reward(from_trl(lambda images, prompts, metadata: result), HALF, ["a", "b"])


def test_what_is_no_function_of_trl_is_refused_and_trls_own_finds_the_adapter() -> None:
    with pytest.raises(TypeError, match=r"takes \(images, prompts\); expected trl's \(images, prompts, metadata\)"):
        from_trl(lambda images, prompts: None)  # type: ignore[arg-type, misc]
    with pytest.raises(TypeError, match="from_trl takes a function of trl's, got str"):
        from_trl("aesthetic")  # type: ignore[arg-type]
    with pytest.raises(RewardError, match=r"must return .* got a pair with metadata.*from_trl adapts"):
        evaluate_reward(resolve_reward(lambda images, prompts, metadata: (torch.zeros(2), {})), HALF, ["a", "b"])
