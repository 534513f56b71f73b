"""The same sweep on a local Ray instance; skipped where the optional package is not installed."""

import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config import override
from benchmarks.ray_pool import RayPool
from benchmarks.runs import read_run, run
from benchmarks.settings import RunSpec, TaskConfig
from benchmarks.sweep import run_all


def spec_of(reward: str, seed: int = 0) -> RunSpec:
    changes = {"images_per_iteration": 4, "num_envs": 4, "updates_per_iteration": 1, "trainable": "full"}
    config = override(ALGORITHMS["ddpo-is"].config, seed=seed, evaluation=EvaluationConfig(images=4), **changes)
    return RunSpec("ddpo-is", config, TaskConfig("exact-gaussian", reward, num_inference_steps=2), 8)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray: pip install 'diffusion-denoise-gym[ray]'")
def test_runs_on_ray_are_those_of_local_processes(tmp_path: Path) -> None:
    """Two runs finish with the numbers of a run in this process; one whose reward fails is tried twice and told."""
    failing = tmp_path / "reward.py"
    failing.write_text("def broken(images, prompts):\n    raise OSError('no server')\n")
    plan = {f"line/ddpo-is/seed-{seed}": spec_of("exact-linear", seed) for seed in (0, 1)}
    plan["broken/ddpo-is/seed-0"] = spec_of(f"{failing}:broken")
    finished: list[str] = []
    failures = run_all(plan, tmp_path / "ray", RayPool("local", 1), finished.append)
    assert sorted(finished) == ["line/ddpo-is/seed-0", "line/ddpo-is/seed-1"]
    assert list(failures) == ["broken/ddpo-is/seed-0"]
    assert "no server" in failures["broken/ddpo-is/seed-0"]
    here = run(plan["line/ddpo-is/seed-1"], tmp_path / "here")
    there = read_run(tmp_path / "ray" / "line" / "ddpo-is" / "seed-1")
    assert there.complete
    assert [line["rewards"] for line in there.evaluations] == [line["rewards"] for line in here.evaluations]


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    with socket.socket() as bound:  # bound and not listening: the port is taken, and refuses connections
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster at '{address}'"):
            RayPool(address, 1)
    with pytest.raises(ValueError, match="Expected HOST:PORT of a running head, auto, or local"):
        RayPool("my-cluster", 1)


@pytest.mark.skipif(find_spec("ray") is not None, reason="the extra ray is installed")
def test_without_ray_the_error_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"pip install 'diffusion-denoise-gym\[ray\]'"):
        RayPool("local", 1)
