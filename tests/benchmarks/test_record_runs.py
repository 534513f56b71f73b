"""Runs from a file of records: rewards and metrics get the metadata, and the run's folder holds them."""

import json
from pathlib import Path

import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.runs.record import Run
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig

LINES = [{"prompt": "north", "tag": "up", "value": 3}, {"prompt": "north", "tag": "down", "value": 5}]
REWARDS = """
import torch
def value(images, prompts, metadata):
    return torch.tensor([float(row["value"]) for row in metadata])
value.required_metadata = ("value",)
def tag(images, prompts, metadata):
    return torch.tensor([float(row["tag"] == "up") for row in metadata])
tag.required_metadata = ["tag"]
"""


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    """A run of one iteration of 8 images with a reward and a metric of metadata, and held-out prompts."""
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    for name, lines in (("train", LINES), ("held", [{**line, "prompt": "south"} for line in LINES])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    evaluation = EvaluationConfig(images=4, held_out_prompts=str(tmp_path / "held.jsonl"))
    changes = {"images_per_iteration": 8, "num_envs": 8, "trainable": "full", "chunk_size": 8}
    config = override(ALGORITHMS["ddpo-is"].config, evaluation=evaluation, **changes)
    metrics = (f"{tmp_path / 'rewards.py'}:tag",)
    task = TaskConfig(
        "exact-mixture",
        f"{tmp_path / 'rewards.py'}:value",
        str(tmp_path / "train.jsonl"),
        num_inference_steps=2,
        metrics=metrics,
    )
    return RunSpec("ddpo-is", config, task, 8)


@pytest.mark.filterwarnings("ignore:the reward")  # it depends on the record alone
def test_rewards_and_metrics_get_the_metadata_which_the_folder_holds(spec: RunSpec, tmp_path: Path) -> None:
    found = run(spec, tmp_path / "run")
    evaluation = found.evaluations[0]
    assert evaluation.rewards == [3, 5] * 2
    assert evaluation.metrics[spec.task.metrics[0]] == 0.5
    assert evaluation.held_out is not None
    assert evaluation.held_out.rewards == [3, 5] * 2
    assert (found.prompts, found.held_out_prompts) == (["north"] * 4, ["south"] * 4)
    assert (
        found.metadata == found.held_out_metadata == [{"tag": t, "value": v} for t, v in (("up", 3), ("down", 5))] * 2
    )
    assert Run.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_field_that_a_metric_needs_is_named_before_anything_is_sampled(spec: RunSpec, tmp_path: Path) -> None:
    without = [{key: value for key, value in line.items() if key != "tag"} | {"prompt": "south"} for line in LINES]
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, without)), encoding="utf-8")
    with pytest.raises(ValueError, match="the metric 'tag' needs the field 'tag' of every prompt, but 'south' has"):
        run(spec, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()


def test_pictures_are_drawn_of_records_and_of_none_with_more_than_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text('{"prompt": "cat", "n": 1}\n{"prompt": "cat", "n": 2}\n', encoding="utf-8")
    arguments = ["--images", "1", "--num-inference-steps", "1", "--output", str(tmp_path / "two.png")]
    assert main(["sample", "--prompts", str(file), *arguments]) == 0
    assert "2 prompts x 1 pictures" in capsys.readouterr().out
    file.write_text('{"prompt": "cat", "negative_prompt": "dog"}\n', encoding="utf-8")
    assert main(["sample", "--prompts", str(file), *arguments]) != 0
    assert "some prompts have a 'negative_prompt', which needs guidance; set --guidance-scale above 1" in (
        " ".join(capsys.readouterr().err.split())
    )
