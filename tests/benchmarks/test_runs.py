"""A run's folder: complete, stopped and resumed, refused; on the exact model, in seconds."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config.base import override
from benchmarks.runs.folder import log_lines
from benchmarks.runs.progress import ProgressBar
from benchmarks.runs.recorder import Progress
from benchmarks.runs.run import read_run, run
from benchmarks.runs.spec import RunSpec, TaskConfig, Writing
from diffusion_gym.models.exact_denoisers import ExactDenoiser
from tests.builders.algorithms import KINDS

TASK = TaskConfig(model="exact-gaussian", reward="exact-quadratic", num_inference_steps=4)


def spec_of(algorithm: str, queries: int = 64) -> RunSpec:
    """Return a run of four iterations of 16 images."""
    changes = {"images_per_iteration": 16, "num_envs": 8, "images_per_prompt": 8, "trainable": "full", "chunk_size": 8}
    config = override(ALGORITHMS[algorithm].config, evaluation=EvaluationConfig(images=8, every=2), **changes)
    return RunSpec(algorithm, config, TASK, queries)


class StopAfter:
    """Ask to stop at the n-th question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_specification_survives_json() -> None:
    for name in ALGORITHMS:
        spec = spec_of(name)
        assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_stopped_and_resumed_run_equals_one_never_stopped(algorithm: str, tmp_path: Path) -> None:
    spec = spec_of(algorithm)
    whole = run(spec, tmp_path / "whole")
    # 64 images in 8 environments of 4 steps are 32 questions; 13 falls into the second iteration.
    stopped = run(spec, tmp_path / "parts", should_stop=StopAfter(13))
    assert not stopped.complete
    resumed = run(spec, tmp_path / "parts")
    assert whole.complete
    assert resumed.complete
    assert [line.rewards for line in resumed.evaluations] == [line.rewards for line in whole.evaluations]
    assert [line.iteration for line in resumed.evaluations] == [0, 2, 4]
    for key in ("reward_queries", "forward_equivalents", "images"):
        assert [e.costs[key] for e in resumed.evaluations] == [e.costs[key] for e in whole.evaluations]
    weights = [(tmp_path / name / "pipeline" / "exact_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    timing = ("clock", "cost/seconds")
    assert [{k: v for k, v in line.items() if k not in timing} for line in logs[0]] == [
        {k: v for k, v in line.items() if k not in timing} for line in logs[1]
    ]


def test_a_run_killed_between_log_lines_drops_the_torn_line(tmp_path: Path) -> None:
    spec = spec_of("ddpo-is")
    run(spec, tmp_path, should_stop=StopAfter(20))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "time/iter')
    assert run(spec, tmp_path).complete
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_run_that_ran_out_of_memory_resumes_in_smaller_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8 rows per forward pass, in the second iteration; the same command resumes with 4, and a note says so."""
    spec = dataclasses.replace(spec_of("ddpo-is"), config=override(spec_of("ddpo-is").config, updates_per_iteration=1))
    forward, passes = ExactDenoiser.forward, []

    def scarce(self: Any, latents: Any, *rest: Any) -> Any:
        passes.append(len(latents))
        if torch.is_grad_enabled() and len(passes) > 30 and len(latents) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, latents, *rest)

    monkeypatch.setattr(ExactDenoiser, "forward", scarce)
    with pytest.raises(MemoryError, match=r"with 8 rows per forward pass .* the same command resumes there with 4"):
        run(spec, tmp_path)
    passes.clear()
    assert run(spec, tmp_path).complete
    assert max(passes) == 4


def test_another_run_in_the_place_of_one_that_ran_out_of_memory_has_its_own_chunk_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(spec_of("ddpo-is"), config=override(spec_of("ddpo-is").config, updates_per_iteration=1))
    with monkeypatch.context() as patch:
        patch.setattr(ExactDenoiser, "forward", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA")))
        with pytest.raises(MemoryError, match="with 8 rows"):
            run(spec, tmp_path)
    other = dataclasses.replace(spec, config=override(spec.config, seed=3))
    assert run(other, tmp_path).complete
    assert {line["train/chunk_size"] for line in log_lines(tmp_path, "metrics.jsonl") if "train/loss" in line} == {8}


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    spec = spec_of("ddpo-is", 16)
    run(spec, tmp_path)
    other = dataclasses.replace(spec, config=override(spec.config, seed=1))
    with pytest.raises(ValueError, match=r"holds another run \(config\.seed 0 there, 1 asked for\)"):
        run(other, tmp_path)


def test_progress_counts_to_the_budget(tmp_path: Path) -> None:
    seen: list[Progress] = []
    spec = spec_of("rwr")
    run(spec, tmp_path, on_progress=seen.append)
    images = [progress.images for progress in seen]
    assert images[-1] == 64
    assert images == sorted(images)
    # It moves while RWR updates, and not in sampling alone: 32 steps of the environments, and more.
    assert len(set(images)) > 32 + 4 * spec.config.updates_per_iteration


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(2048, already=1024) as bar:
        for images in range(0, 1024, 8):
            bar.show({"rwr": float(images)}, {"reward": -1.25, "eval": None}, "rwr: ")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3
    assert "2040/2048 images" in lines[-1]
    assert "rwr: reward=-1.250]" in lines[-1]
    assert not any("\r" in line for line in lines)


def test_tensorboard_has_curves_and_pictures_and_a_resumed_run_goes_on_cleanly(tiny_sd: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec = dataclasses.replace(
        spec_of("ddpo-is"),
        task=TaskConfig(tiny_sd, "compressibility", num_inference_steps=2, metrics=("diversity",)),
    )
    # 16 images are 4 questions; the run stops in its third iteration, and its checkpoint is made that of the first.
    run(spec, tmp_path, should_stop=StopAfter(7), writing=Writing(tensorboard=True))
    early = (tmp_path / "checkpoint.zip").read_bytes()
    run(spec, tmp_path, should_stop=StopAfter(6), writing=Writing(tensorboard=True))
    (tmp_path / "checkpoint.zip").write_bytes(early)
    assert run(spec, tmp_path, writing=Writing(tensorboard=True)).complete
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    assert {"eval/reward_mean", "eval/diversity", "rollout/ep_rew_mean", "train/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [32, 64, 96, 128]
    pictures = {event.step: event.encoded_image_string for event in events.Images("eval/images")}
    assert list(pictures) == [0, 64, 128]
    shown = Image.open(io.BytesIO(pictures[128])).convert("RGB")
    assert shown.tobytes() == Image.open(tmp_path / "images" / "000004.png").convert("RGB").tobytes()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run"):
        read_run(tmp_path)


def test_budget_is_rounded_up_to_whole_iterations() -> None:
    assert dataclasses.replace(spec_of("ddpo-sf"), reward_queries=17).total_queries == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "compressability"}, "unknown reward 'compressability'"),
        ({"prompts": "animal"}, "unknown prompt set 'animal'"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"metrics": ("beauty",)}, "unknown metric 'beauty'"),
    ],
)
def test_bad_tasks_are_refused_before_anything_is_loaded(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TASK, **change)
