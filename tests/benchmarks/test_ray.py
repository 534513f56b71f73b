"""The same sweep on a local Ray instance; skipped where the optional package is not installed."""

import dataclasses
import socket
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config.base import override
from benchmarks.runs.run import read_run, run
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.sweeps.ray_checks import check_resources
from benchmarks.sweeps.ray_pool import RayPool
from benchmarks.sweeps.sweep import run_all

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="needs the extra ray: pip install 'diffusion-denoise-gym[ray]'"
)


def spec_of(reward: str, seed: int = 0) -> RunSpec:
    changes = {"images_per_iteration": 4, "num_envs": 4, "updates_per_iteration": 1, "trainable": "full"}
    config = override(ALGORITHMS["ddpo-is"].config, seed=seed, evaluation=EvaluationConfig(images=4), **changes)
    return RunSpec("ddpo-is", config, TaskConfig("exact-gaussian", reward, num_inference_steps=2), 8)


@pytest.mark.slow
@needs_ray
def test_runs_on_ray_are_those_of_local_processes(tmp_path: Path) -> None:
    """Two runs finish with the numbers of a run in this process; one whose reward fails is tried twice and told."""
    failing = tmp_path / "reward.py"
    failing.write_text("def broken(images, prompts):\n    raise OSError('no server')\n")
    plan = {f"line/ddpo-is/seed-{seed}": spec_of("exact-linear", seed) for seed in (0, 1)}
    plan["broken/ddpo-is/seed-0"] = spec_of(f"{failing}:broken")
    finished: list[str] = []
    failures = run_all(plan, tmp_path / "ray", RayPool("local", 1, tmp_path / "ray", plan.values()), finished.append)
    assert sorted(finished) == ["line/ddpo-is/seed-0", "line/ddpo-is/seed-1"]
    assert list(failures) == ["broken/ddpo-is/seed-0"]
    assert "no server" in failures["broken/ddpo-is/seed-0"]
    here = run(plan["line/ddpo-is/seed-1"], tmp_path / "here")
    there = read_run(tmp_path / "ray" / "line" / "ddpo-is" / "seed-1")
    assert there.complete
    assert [line.rewards for line in there.evaluations] == [line.rewards for line in here.evaluations]
    assert not list((tmp_path / "ray").glob(".*")), "the file that asks whether the folder is shared stays there"


@pytest.mark.slow
@needs_ray
def test_the_loss_of_the_progress_messages_sinks_no_run(tmp_path: Path) -> None:
    """The actor is killed, as when its node is lost, while a run waits in its reward; then it is killed for good."""
    import ray

    reward = tmp_path / "reward.py"
    reward.write_text(
        "import pathlib, time, torch\n\n"
        f"FOLDER = pathlib.Path({str(tmp_path)!r})\n\n"
        "def slow(images, prompts):\n"
        "    (FOLDER / 'begun').touch()\n"
        "    while not (FOLDER / 'go').exists():\n"
        "        time.sleep(0.1)\n"
        "    return torch.zeros(len(prompts))\n"
    )
    plan = {"slow/ddpo-is/seed-0": spec_of(f"{reward}:slow")}
    pool = RayPool("local", 1, tmp_path / "ray", plan.values())
    lost = threading.Event()

    class Losing(RayPool):
        def messages(self) -> list[Any]:
            if (tmp_path / "begun").exists() and not (tmp_path / "go").exists():
                ray.kill(self._channel, no_restart=lost.is_set())
                if lost.is_set():
                    (tmp_path / "go").touch()
                lost.set()
            return super().messages()

    pool.__class__ = Losing
    finished: list[str] = []
    assert run_all(plan, tmp_path / "ray", pool, finished.append) == {}
    assert finished == list(plan)
    assert (tmp_path / "go").exists()


@pytest.mark.slow
@needs_ray
def test_runs_are_asked_to_stop_again_by_an_actor_in_the_place_of_a_lost_one(tmp_path: Path) -> None:
    import ray

    with RayPool("local", 1, tmp_path, [spec_of("exact-linear")]) as pool:
        assert ray.get(pool._channel.begin.remote("line/ddpo-is/seed-0")) is False
        assert pool.messages() == []
        ray.kill(pool._channel, no_restart=False)
        pool.stop()
        assert pool._begun == {"line/ddpo-is/seed-0"}
        answers = set()
        while True not in answers:  # the first polls may find none that is up
            pool.messages()
            try:
                answers.add(ray.get(pool._channel.begin.remote("line/ddpo-is/seed-1")))
            except ray.exceptions.RayActorError:
                continue


@pytest.mark.slow
@needs_ray
def test_a_cluster_that_cannot_make_the_runs_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    import benchmarks.sweeps.ray_checks

    with pytest.raises(
        ValueError, match=r"asks for 9999 CPU\(s\) and 0 GPU\(s\) of one node; the largest of the 1 node"
    ):
        RayPool("local", 9999, tmp_path, [spec_of("exact-linear")])
    assert not ray.is_initialized()

    def sees(file: str) -> bool:
        return Path(f"{file}-elsewhere").is_file()

    monkeypatch.setattr(benchmarks.sweeps.ray_checks, "_sees", sees)
    with pytest.raises(ValueError, match=r"cannot see what this machine writes into .* a file system that all nodes"):
        RayPool("local", 1, tmp_path / "runs", [spec_of("exact-linear")])
    assert not ray.is_initialized()
    assert list((tmp_path / "runs").iterdir()) == []


def node(name: str, alive: bool = True, **resources: float) -> Mapping[str, Any]:
    """Return a node as Ray tells it: a resource that it has not is left out."""
    return {"NodeID": name, "Alive": alive, "Resources": {"memory": 1e9, **resources}}


def test_runs_go_to_the_nodes_that_have_what_they_ask_for() -> None:
    on_cpu = spec_of("exact-linear")
    on_gpu = dataclasses.replace(on_cpu, task=dataclasses.replace(on_cpu.task, device="cuda"))
    nodes = [node("head"), node("a", CPU=8.0), node("b", CPU=2.0, GPU=1.0), node("c", alive=False, CPU=64.0, GPU=8.0)]
    assert [found["NodeID"] for found in check_resources([on_cpu], 2, nodes)] == ["a", "b"]
    assert [found["NodeID"] for found in check_resources([on_gpu], 2, nodes)] == ["b"]
    assert [found["NodeID"] for found in check_resources([on_gpu, on_cpu], 1, nodes)] == ["b", "a"]
    assert check_resources([], 1, nodes) == []
    says = (
        r"a run on 'cuda' with 4 thread\(s\) asks for 4 CPU\(s\) and 1 GPU\(s\) of one node; the largest of the 3 node"
    )
    with pytest.raises(ValueError, match=rf"{says}\(s\) of the Ray cluster has 2 CPU\(s\) and 1 GPU\(s\)"):
        check_resources([on_cpu, on_gpu], 4, nodes)
    with pytest.raises(
        ValueError, match=r"largest of the 3 .* has 8 CPU\(s\) and 0 GPU\(s\). Lower --threads, or start"
    ):
        check_resources([on_cpu], 9, nodes)
    with pytest.raises(ValueError, match=r"largest of the 0 node\(s\) of the Ray cluster has 0 CPU\(s\) and 0 GPU"):
        check_resources([on_cpu], 1, [])


def test_an_address_without_a_cluster_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as bound:  # bound and not listening: the port is taken, and refuses connections
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster at '{address}'"):
            RayPool(address, 1, tmp_path, [])
    with pytest.raises(ValueError, match="Expected HOST:PORT of a running head, auto, or local"):
        RayPool("my-cluster", 1, tmp_path, [])


@pytest.mark.skipif(find_spec("ray") is not None, reason="the extra ray is installed")
def test_without_ray_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pip install 'diffusion-denoise-gym\[ray\]'"):
        RayPool("local", 1, tmp_path, [])
