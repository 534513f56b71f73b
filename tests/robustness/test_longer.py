"""A run made longer, repeated with changes, or begun anew where an earlier one in its folder got nowhere."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.checkpoints.file import read_checkpoint
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.runs.folder import log_lines
from benchmarks.runs.run import read_run, run
from benchmarks.runs.safeguards import Safeguards
from benchmarks.runs.spec import RunSpec, TaskConfig
from tests.builders.algorithms import KINDS

TRAIN = ["train", "ddpo-is", "--model", "exact-gaussian", "--policy.trainable", "full", "--threads", "1"]
TRAIN += ["--images-per-iteration", "8", "--num-envs", "8", "--num-inference-steps", "2", "--reward-queries", "16"]
QUADRATIC = ["--reward", "exact-quadratic", "--evaluation.images", "4", "--evaluation.every", "2"]


def spec_of(name: str, queries: int, **safeguards: Any) -> RunSpec:
    """Return a run with statistics, averages and evaluations every third iteration, of eight images each."""
    changes: dict[str, Any] = {"images_per_iteration": 8, "num_envs": 8, "images_per_prompt": 4, "chunk_size": 8}
    if name.endswith("rwr"):
        changes |= {"updates_per_iteration": 2, "batch_size": 8}
    evaluation = EvaluationConfig(images=4, every=3)
    config = override(ALGORITHMS[name].config, evaluation=evaluation, trainable="full", ema_decay=0.9, **changes)
    task = TaskConfig("exact-mixture", "exact-linear:normalise", num_inference_steps=3)
    return RunSpec(name, config, task, queries, Safeguards(**safeguards))


def contents(folder: Path) -> dict[str, Any]:
    """All that a run's folder says, except the wall clock and what made it."""
    checkpoint = read_checkpoint(folder / "checkpoint.zip")
    checkpoint.state["costs"].pop("seconds")
    lines = {name: log_lines(folder, name) for name in ("metrics.jsonl", "evaluations.jsonl")}
    for line in [*lines["metrics.jsonl"], *lines["evaluations.jsonl"]]:
        line.pop("clock", None), line.pop("cost/seconds", None), line.get("costs", {}).pop("seconds", None)
    said = json.loads((folder / "run.json").read_text())
    return {
        "state": checkpoint.state,
        "tensors": {name: value.numpy().tobytes() for name, value in checkpoint.tensors.items()},
        "said": {name: said[name] for name in ("spec", "complete", "prompts", "best") if name in said},
        "exported": (folder / "pipeline" / "exact_model.safetensors").read_bytes(),
        "images": sorted(file.name for file in folder.glob("images/*")),
        **lines,
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_finished_run_made_longer_is_one_that_was_asked_for_at_once(name: str, tmp_path: Path) -> None:
    """Ended between two evaluations, whose extra last one is dropped, and stopped again on the way."""
    run(spec_of(name, 32), tmp_path / "whole")
    assert run(spec_of(name, 16), tmp_path / "parts").complete
    assert [line.iteration for line in read_run(tmp_path / "parts").evaluations] == [0, 2]
    asked = iter([False, False, False, True])
    assert not run(spec_of(name, 32), tmp_path / "parts", should_stop=lambda: next(asked, True)).complete
    assert run(spec_of(name, 32), tmp_path / "parts").complete
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_resumed_run_says_where_and_its_bar_begins_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TRAIN, *QUADRATIC, "--folder", str(tmp_path / "run")]
    assert main(command) == 0
    assert "resuming" not in capsys.readouterr().out
    assert main([*command, "--reward-queries", "32"]) == 0  # the latter of two counts
    said = capsys.readouterr()
    assert "resuming after 16 of 32 reward queries\n" in said.out
    assert int(said.err.partition("| ")[2].partition("/32 images")[0]) >= 16


def test_a_finished_run_is_read_back_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("ddpo-is", 16)
    first = run(spec, tmp_path)
    monkeypatch.setattr("benchmarks.runs.run._learn", lambda *given: pytest.fail("it was trained or exported again"))
    assert run(spec, tmp_path) == first
    assert run(dataclasses.replace(spec, reward_queries=15), tmp_path) == first, "two iterations as well"


def test_the_best_of_a_run_made_longer_is_never_a_worse_one(tmp_path: Path) -> None:
    """Also where it was found by the first part's last evaluation, which the longer run would not have made."""
    run(spec_of("ddpo-is", 16, keep_best="reward"), tmp_path)
    said = json.loads((tmp_path / "run.json").read_text())
    said["best"] = {"metric": "reward", "value": 1e9, "iteration": 2}
    (tmp_path / "run.json").write_text(json.dumps(said))
    best = (tmp_path / "best.zip").read_bytes()
    record = run(spec_of("ddpo-is", 32, keep_best="reward"), tmp_path)
    assert record.best == said["best"]
    assert (tmp_path / "best.zip").read_bytes() == best


def test_a_run_is_not_made_shorter(tmp_path: Path) -> None:
    run(spec_of("ddpo-is", 16), tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a run of 16 reward queries, and 8 were asked for: .*longer, not short"
    ):
        run(spec_of("ddpo-is", 8), tmp_path)
    log = tmp_path / "stopped" / "metrics.jsonl"
    begun = lambda: log.is_file() and "train/loss" in log.read_text()  # noqa: E731
    assert not run(spec_of("ddpo-is", 32), tmp_path / "stopped", should_stop=begun).complete
    with pytest.raises(ValueError, match="longer, not shorter"):
        run(spec_of("ddpo-is", 16), tmp_path / "stopped")


def test_a_run_that_its_safeguards_stopped_is_not_made_longer_by_queries(tmp_path: Path) -> None:
    watched = {"stop_when_metric_falls": "reward", "patience": 1}
    run(spec_of("ddpo-is", 16, **watched), tmp_path)
    said = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**said, "stopped_early": "reward fell"}))
    assert run(spec_of("ddpo-is", 16, **watched), tmp_path).stopped_early == "reward fell"
    with pytest.raises(ValueError, match=r"was stopped by its safeguards, .*\(reward fell\).* other safeguards"):
        run(spec_of("ddpo-is", 32, **watched), tmp_path)


def test_the_command_makes_a_run_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [*TRAIN, *QUADRATIC, "--folder", str(tmp_path)]
    for queries in ("16", "24"):
        assert main([*train, "--reward-queries", queries]) == 0
    assert read_run(tmp_path).spec.reward_queries == 24
    assert main([*train, "--reward-queries", "16"]) == 2
    assert "a run can be made longer, not shorter" in capsys.readouterr().err


# -- begun anew --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrected", ["rewards.py:works", "exact-quadratic", "rewards.py:fails, mended"])
def test_a_run_that_failed_at_once_does_not_block_its_folder(
    corrected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether another reward is named, the old one's file is gone, or it is mended; with other settings too."""
    monkeypatch.chdir(tmp_path)
    file = Path("rewards.py")
    works = "def works(images, prompts):\n    return images.float().mean((1, 2, 3))\n"
    file.write_text("def fails(images, prompts):\n    raise RuntimeError('no')\n" + works)
    other = ["--folder", "run", "--evaluation.images", "0", "--keep-checkpoints", "2"]
    assert main([*TRAIN, *other, "--reward", "rewards.py:fails"]) == 2
    Path("run/notes.txt").write_text("mine")
    if corrected == "exact-quadratic":
        file.unlink()
    elif corrected.endswith("mended"):
        file.write_text(works.replace("works", "fails"))
    named = corrected.partition(",")[0]
    assert main([*TRAIN, *other, "--reward", named, "--seed", "7", "--learning-rate", "1e-3"]) == 0
    record = read_run(Path("run"))
    assert (record.spec.task.reward, record.spec.config.seed, record.complete) == (named, 7, True)
    assert [line["time/iterations"] for line in log_lines(Path("run"), "metrics.jsonl")] == [1, 2]
    assert Path("run/notes.txt").read_text() == "mine"
    assert sorted(file.name for file in Path("run/checkpoints").iterdir()) == ["000002.zip"]


def test_a_run_with_an_iteration_keeps_its_folder(tmp_path: Path) -> None:
    """With its log and without a checkpoint, with a checkpoint and without its log."""
    spec, other = spec_of("ddpo-is", 16), spec_of("ddpo-sf", 16)
    run(spec, tmp_path)
    said = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**said, "complete": False}))
    log = (tmp_path / "metrics.jsonl").rename(tmp_path / "log")
    with pytest.raises(ValueError, match="holds another run"):
        run(other, tmp_path)
    log.rename(tmp_path / "metrics.jsonl")
    (tmp_path / "checkpoint.zip").unlink()
    with pytest.raises(ValueError, match="holds another run"):
        run(other, tmp_path)


# -- repeated with changes ---------------------------------------------------------------------------------------------


def test_a_repetition_takes_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, *QUADRATIC, "--seed", "3", "--folder", "runs/first"]) == 0
    first = read_run(Path("runs/first")).spec
    capsys.readouterr()

    changed = ["--seed", "4", "--learning-rate", "1e-2", "--reward", "exact-linear"]
    assert main(["train", "--config", "runs/first/run.json", *changed, "--folder", "runs/second"]) == 0
    said = capsys.readouterr().out
    for line in ("config.seed 3, now 4", "config.learning_rate 0.02, now 0.01", "exact-quadratic, now exact-linear"):
        assert line in said
    config, task = (
        override(first.config, seed=4, learning_rate=1e-2),
        dataclasses.replace(first.task, reward="exact-linear"),
    )
    assert read_run(Path("runs/second")).spec == dataclasses.replace(first, config=config, task=task)

    assert main(["train", "ddpo-is", "--seed=5", "--config=runs/first", "--evaluation.images", "0", "--threads=1"]) == 0
    (folder,) = Path("runs").glob("first-*")
    assert "seed" in folder.name
    assert main(["train", "--config", "runs/first"]) == 0
    again = read_run(Path("runs/first-repeat"))
    assert again.spec == first
    assert again.evaluations[-1].rewards == read_run(Path("runs/first")).evaluations[-1].rewards


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config"], "expected one run's folder, or its run.json, behind --config"),
        (["train", "--config", "--seed", "1"], "expected one run's folder"),
        (["train", "--config", "a", "--config=b"], "expected one run's folder"),
        (["train", "--config", "nowhere", "--seed", "1"], "'nowhere' is no run"),
        (["train", "rwr", "--config", "run"], "is a run of ddpo-is, not of rwr"),
        (["train", "--config", "run", "--folder", "run"], "is the run that is to be repeated"),
        (["train", "--config", "run", "--beta", "1"], "--beta"),
        (["train", "--config", "run", "--seed", "-1"], "seed must be at least 0, got -1"),
    ],
)
def test_a_wrong_repetition_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(spec_of("ddpo-is", 8), tmp_path / "run", should_stop=lambda: True)
    try:
        status: object = main(words)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
