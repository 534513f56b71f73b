"""What a run will take, said before it begins."""

import dataclasses
from pathlib import Path

import pytest
import torch

from algorithms import ALGORITHMS, DeployedConfig, EvaluationConfig
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.runs.forecast import Speed, Workload, workload
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.sweeps import probed as probed_module
from benchmarks.sweeps.dry_run import workloads
from benchmarks.throughput.iteration import Rows

CHANGES: dict[str, dict[str, object]] = {
    "ddpo-is": {"updates_per_iteration": 2, "kl_penalty": 0.1},
    "branched": {"images_per_prompt": 8, "updates_per_iteration": 1},
    "awm": {"images_per_prompt": 8, "draws_per_image": 2},
    "rwr": {"updates_per_iteration": 3, "batch_size": 16},
    "draft": {"eta": 0.0},
}


@pytest.mark.parametrize("name", CHANGES)
def test_forward_passes_are_those_that_the_run_is_billed(name: str, tmp_path: Path) -> None:
    few = {"trainable": "full", "images_per_iteration": 32, "num_envs": 16}
    config = override(
        ALGORITHMS[name].config, **{**few, **CHANGES[name]}, evaluation=EvaluationConfig(images=8, every=1)
    )
    task = TaskConfig(model="exact-gaussian", reward="exact-quadratic", num_inference_steps=5)
    spec = RunSpec(name, config, task, 96)
    found = workload(spec)
    forwards = found.forwards(1)
    assert forwards is not None
    billed = run(spec, tmp_path / "run").costs["forward_equivalents"]
    assert sum(forwards) == pytest.approx(billed, rel=0.1 if name == "branched" else 0)  # whose windows lie at random
    assert (found.iterations, found.images, found.evaluated) == (3, 32, 8 * 4)


def test_several_rewards_are_counted_and_an_algorithm_that_fails_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"trainable": "full", "images_per_iteration": 8, "images_per_prompt": 4, "num_envs": 8}
    config = override(ALGORITHMS["ddpo-is"].config, **few, advantages="gdpo")
    task = TaskConfig("exact-gaussian", "exact-quadratic,exact-linear", num_inference_steps=2)
    spec = RunSpec("ddpo-is", config, task, 8)
    assert workload(spec).rows is not None

    def needs_more(self: object, rollout: object) -> None:
        raise AttributeError("the exact model has no text encoder")

    monkeypatch.setattr(ALGORITHMS["ddpo-is"].cls, "update", needs_more)
    assert workload(spec).rows is None


def test_time_is_the_sum_of_its_parts() -> None:
    found = Workload(iterations=10, images=64, evaluated=80, steps=10, rows=Rows(sampled=640, trained=320, compared=5))
    said = Speed(forward=0.01, training=0.02, decoding=0.5, reward=0.25).describe(found)
    assert said.startswith("time, from a probe: about 11 min ("), said
    assert "sampling 64 s, training 64 s, decoding 6 min, reward 3 min, evaluations 8.0 s" in said
    assert "without the reward, which is not called" in Speed(0.01, 0.02, 0.5, None).describe(found)
    uncounted = Workload(10, 64, 80, 10, None)
    assert "not counted" in uncounted.describe(1)
    assert "not estimated" in Speed(0.01, 0.02, 0.5, 0.25).describe(uncounted)


def test_a_short_run_is_not_probed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four passes of a chunk, three times, at most a twentieth of the run's; a dry run is always probed."""
    command = ["train", "ddpo-is", "--model", "exact-gaussian", "--policy.trainable", "full"]
    command += ["--num-inference-steps", "4", "--policy.chunk-size", "8", "--num-envs", "8", "--evaluation.images", "0"]
    command += ["--reward", "exact-linear", "--images-per-iteration", "32"]
    for queries, probed in ((32, False), (128, True)):  # 512 and 2,048 forward passes; the probe makes 96
        folder = str(tmp_path / str(queries))
        assert main([*command, "--reward-queries", str(queries), "--folder", folder]) == 0
        assert ("time, from a probe" in capsys.readouterr().out) is probed


def test_evaluations_with_the_deployed_sampler_have_its_own_steps() -> None:
    """Four iterations are evaluated five times; the deployed sampler's images are drawn twice, or each time."""
    base = override(ALGORITHMS["ddpo-is"].config, images_per_iteration=32, num_envs=16, trainable="full")
    task = TaskConfig(model="exact-gaussian", reward="exact-quadratic", num_inference_steps=5)
    for always, times in ((False, 2), (True, 5)):
        deployed = DeployedConfig(num_inference_steps=50, always=always)
        config = dataclasses.replace(base, evaluation=EvaluationConfig(8, deployed=deployed))
        found = workload(RunSpec("ddpo-is", config, task, 128))
        assert found.evaluated == 8 * (5 + times)
        assert found.evaluation_steps == 8 * 5 * 5 + 8 * times * 50


def test_guidance_doubles_the_forward_passes() -> None:
    found = Workload(iterations=2, images=4, evaluated=0, steps=5, rows=Rows(20, 10, 0))
    assert found.forwards(2) == (80, 120)


def test_a_dry_run_calls_no_reward_of_the_users_writes_nothing_and_refuses_what_train_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def dear(images, prompts):\n    raise RuntimeError('called')\n", encoding="utf-8")
    command = ["train", "ddpo-is", "--model", "exact-gaussian", "--policy.trainable", "full", "--dry-run"]
    assert main([*command, "--reward", "mine.py:dear"]) == 0
    said = capsys.readouterr().out
    assert "32 iterations of 64 images: 2,048 reward calls" in said
    assert "without the reward, which is not called" in said
    assert "memory on cpu, estimated" in said
    assert main([*command, "--reward", "votes"]) == 2
    assert "votes asks nobody about the images of evaluations" in capsys.readouterr().err
    assert main([*command, "--reward", "exact-linear", "--stop-when-hacked", "--evaluation.images", "1"]) == 2
    assert "--stop-when-hacked compares images of one prompt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]


def test_a_plan_takes_the_memory_of_its_largest_runs_and_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of runs, measured at 1 and 3 GB; two at a time; a second reward of a model is not measured too late."""
    few = {"trainable": "full", "images_per_iteration": 8, "images_per_prompt": 4, "num_envs": 8}
    config = override(ALGORITHMS["ddpo-sf"].config, **few)

    def spec_of(reward: str, seed: int) -> RunSpec:
        return RunSpec("ddpo-sf", override(config, seed=seed), TaskConfig("exact-gaussian", reward), 16)

    plan = {
        f"{reward}/v/seed-{seed}": spec_of(f"exact-{reward}", seed)
        for reward in ("linear", "quadratic")
        for seed in (0, 1)
    }
    works = workloads(plan)
    measured: list[str] = []

    def measure(spec: RunSpec) -> probed_module._Measured:
        measured.append(spec.task.reward)
        quadratic = spec.task.reward == "exact-quadratic"
        return probed_module._Measured(
            Speed(0, 0, 30.0, None if quadratic else 0.0), 10**9 * (1 + 2 * quadratic), torch.device("cpu")
        )

    monkeypatch.setattr(probed_module, "_measure", measure)
    said = probed_module.probed(plan, works, 2, 1)
    assert measured == ["exact-linear", "exact-quadratic"]
    assert "memory on cpu, estimated: 3.0 GB for the largest run" in said
    assert "; 6.0 GB for 2 at a time, of " in said
    assert "about 16 min in passes, decoding and rewards, 2 at a time" in said  # 4 runs of 16 images of 30 s
    assert said.endswith("without the time of the rewards exact-quadratic, which are not called before")
    monkeypatch.setattr(probed_module, "_SECONDS", -1)
    assert "6.0 GB" not in probed_module.probed(plan, works, 2, 1)
    assert measured[2:] == ["exact-linear"]
    assert not probed_module.is_probed_first(plan, works)  # 64 images: short
    monkeypatch.setattr(probed_module, "_LEAST_FORWARDS", 1)
    assert probed_module.is_probed_first(plan, works)


def test_a_probe_of_a_plan_measures_an_exact_model() -> None:
    few = {"trainable": "full", "images_per_iteration": 8, "images_per_prompt": 4, "num_envs": 8}
    task = TaskConfig("exact-gaussian", "exact-linear", num_inference_steps=2)
    found = probed_module._measure(RunSpec("ddpo-sf", override(ALGORITHMS["ddpo-sf"].config, **few), task, 16))
    assert found is not None
    assert found.speed.forward > 0
    assert found.memory > 10**7  # Python and torch
