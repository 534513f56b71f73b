"""Runs evaluated with the sampler that their models are used with: while they train, and afterwards by ``evaluate``."""

import json
from pathlib import Path

import pytest
import torch

from algorithms import ALGORITHMS, DeployedConfig, EvaluationConfig
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.analysis.curves import curves
from benchmarks.analysis.table import Number
from benchmarks.analysis.tables import deployed_table
from benchmarks.report import page
from benchmarks.runs.record import Run
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig


def test_both_samplers_are_logged_reported_and_measured_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Start and end are the same numbers in the run's own evaluations and in those of ``evaluate``."""
    torch.set_num_threads(1)
    for name, text in {"train": "north\nsouth\n", "held": "east\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    evaluation = EvaluationConfig(8, held_out_prompts=str(tmp_path / "held.txt"), deployed=DeployedConfig(eta=0.0))
    changes = {"images_per_iteration": 16, "num_envs": 8, "trainable": "full", "chunk_size": 8}
    config = override(ALGORITHMS["ddpo-is"].config, evaluation=evaluation, **changes)
    task = TaskConfig(
        "exact-mixture", "exact-linear", str(tmp_path / "train.txt"), num_inference_steps=4, metrics=("diversity",)
    )
    folder = tmp_path / "run"
    record = run(RunSpec("ddpo-is", config, task, 32), folder)

    first, between, last = record.evaluations
    assert between.deployed is None
    assert first.deployed is not None
    assert last.deployed is not None
    assert first.deployed.rewards != first.rewards
    assert Run.from_json(json.loads(json.dumps(record.to_json()))).evaluations == record.evaluations
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["deployed/reward_mean"] == pytest.approx(last.deployed.mean_reward, abs=1e-5)
    assert last.deployed_held_out is not None
    assert log[-1]["deployed_held_out/reward_mean"] == pytest.approx(last.deployed_held_out.mean_reward, abs=1e-5)
    images = {file.name for file in (folder / "images").glob("000002*")}
    assert images == {f"000002{kind}.png" for kind in ("", "-held-out", "-deployed", "-deployed-held-out")}

    table = deployed_table(curves([record]))
    assert table is not None
    shown = [piece for cell in table.rows[0] for piece in cell if isinstance(piece, Number)]
    means = [first.mean_reward, last.mean_reward, first.deployed.mean_reward, last.deployed.mean_reward]
    assert [piece.text for piece in shown[:4]] == [f"{mean:.3f}" for mean in means]
    assert shown[3].origin.to_json()["path"].endswith("evaluations[2].deployed.rewards")
    monkeypatch.setattr(page, "write_figures", lambda *_: None)
    assert main(["report", str(folder)]) == 0
    assert "Rewards and metrics with the deployed sampler" in (folder / "report.html").read_text(encoding="utf-8")

    output = tmp_path / "deployed.json"
    assert main(["evaluate", "--run", str(folder), "--output", str(output)]) == 0
    assert f"deployed sampler {first.deployed.mean_reward:.4f} to" in capsys.readouterr().out
    (found,) = json.loads(output.read_text(encoding="utf-8"))["runs"]
    for moment, line in {"start": first, "end": last}.items():
        assert line.deployed is not None
        assert found["training_sampler"][moment]["rewards"] == line.rewards
        assert found["deployed_sampler"][moment]["rewards"] == line.deployed.rewards
        assert found["deployed_sampler"][moment]["metrics"] == line.deployed.metrics
        assert line.deployed_held_out is not None
        assert found["deployed_sampler"][moment]["held_out"]["rewards"] == line.deployed_held_out.rewards


def test_a_run_without_evaluations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There are no prompts and no noise that its other numbers could be compared with."""
    config = override(ALGORITHMS["ddpo-is"].config, images_per_iteration=8, num_envs=8, trainable="full")
    spec = RunSpec("ddpo-is", config, TaskConfig("exact-mixture", "exact-linear", num_inference_steps=2), 8)
    run(spec, tmp_path / "run", should_stop=lambda: True)
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "out.json")]) == 2
    assert "has no evaluation, whose prompts" in capsys.readouterr().err
