"""Runs on model rewards: a held-out metric, and a served reward whose server dies in the middle."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.runs.pictures import read_grid
from benchmarks.runs.recorder import GRID_COLUMNS
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig
from diffusion_gym.rewards import RewardError, resolve_reward

TASK = TaskConfig(model="exact-mixture", prompts=None, num_inference_steps=3)


def spec_of(task: TaskConfig, queries: int) -> RunSpec:
    """Return a run of iterations of 8 images, evaluated on 4 before each second one."""
    changes = {"images_per_iteration": 8, "num_envs": 8, "images_per_prompt": 4, "trainable": "full", "chunk_size": 8}
    config = override(ALGORITHMS["ddpo-is"].config, evaluation=EvaluationConfig(images=4, every=2), **changes)
    return RunSpec("ddpo-is", config, task, queries)


def test_a_reward_can_be_measured_without_being_trained_on(tiny_rewards: Path, tmp_path: Path) -> None:
    metrics = ("clip_score", "clip_score?scale=1", "aesthetic", "diversity")
    record = run(spec_of(dataclasses.replace(TASK, reward="exact-linear", metrics=metrics), 16), tmp_path)
    assert [evaluation.iteration for evaluation in record.evaluations] == [0, 2]
    for evaluation in record.evaluations:
        measured = evaluation.metrics
        assert list(measured) == list(metrics)
        assert measured["clip_score"] == pytest.approx(100 * measured["clip_score?scale=1"], rel=1e-4)
        file = tmp_path / "images" / f"{evaluation.iteration:06d}.png"
        images = read_grid(file, 4, GRID_COLUMNS, record.image_shape[1:])
        scores = resolve_reward("aesthetic")(images, [""] * 4)
        assert measured["aesthetic"] == pytest.approx(float(scores.mean()), abs=1e-6)


def test_unknown_metrics_list_both_kinds() -> None:
    with pytest.raises(
        ValueError, match=r"unknown metric 'clip'; expected some of \['clip_diversity', .*reward.*clip_score"
    ):
        dataclasses.replace(TASK, reward="exact-linear", metrics=("clip",))
    with pytest.raises(ValueError, match="unknown option 'clop'"):
        dataclasses.replace(TASK, reward="exact-linear", metrics=("clip_score?clop=1",))


def test_a_run_outlives_its_reward_server(chat_server: Callable[..., Any], tiny_rewards: Path, tmp_path: Path) -> None:
    """Killed in the third iteration, resumed on a server at the same port: the run that was never disturbed."""
    server = chat_server()
    options = f"url={server.url}&model=tiny&bert={quote(str(tiny_rewards / 'bert'))}&retries=1&pause=0.01"
    spec = spec_of(dataclasses.replace(TASK, reward=f"vlm_alignment?{options}"), 32)
    whole = run(spec, tmp_path / "whole")
    assert whole.complete
    before = len(server.requests)
    # 4 evaluation images, two iterations of 8, 4 evaluation images, and 3 of the third iteration's.
    server.behave = lambda attempt, picture: "answer" if len(server.requests) <= before + 27 else "cut"
    with pytest.raises(RewardError) as error:
        run(spec, tmp_path / "parts")
    message = str(error.value)
    assert f"the server at {server.url}/chat/completions gave no answer" in message
    assert "the same command resumes" in message
    checkpoint = tmp_path / "parts" / "checkpoint.zip"
    assert str(checkpoint) in message
    algorithm = ALGORITHMS["ddpo-is"].cls.load(checkpoint)
    assert algorithm.iteration == 2
    server.stop()
    chat_server(server.port)
    resumed = run(spec, tmp_path / "parts")
    assert resumed.complete
    assert [line.rewards for line in resumed.evaluations] == [line.rewards for line in whole.evaluations]
    weights = [(tmp_path / name / "pipeline" / "exact_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_the_command_line_ends_without_traceback(
    chat_server: Callable[..., Any],
    tiny_rewards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    server = chat_server()
    server.behave = lambda attempt, picture: "404"
    reward = f"vlm_alignment?url={server.url}&model=tiny"
    arguments = ["train", "ddpo-is", "--model", "exact-mixture", "--policy.trainable", "full", "--threads", "1"]
    assert main([*arguments, "--reward", reward, "--num-envs", "8", "--images-per-iteration", "8"]) == 2
    error = capsys.readouterr().err
    assert "refused a request for the model 'tiny' with status 404" in error
    assert "Traceback" not in error
    (folder,) = (tmp_path / "runs").iterdir()  # options become part of one folder's name
    assert (folder / "checkpoint.zip").is_file()


def test_specification_is_the_reward(tiny_rewards: Path) -> None:
    """What a RunSpec keeps is text; two of the same text score alike."""
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    text = RunSpec.from_json(
        json.loads(json.dumps(spec_of(dataclasses.replace(TASK, reward="aesthetic:2,clip_score?scale=3"), 8).to_json()))
    ).task.reward
    first, second = (resolve_reward(text)(images, ["a", "b", "c"]) for _ in range(2))
    assert torch.equal(first, second)
