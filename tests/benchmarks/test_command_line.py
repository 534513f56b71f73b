"""The command line as a user meets it: help, refusals, Ctrl-C and resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.checkpoints.file import read_checkpoint
from benchmarks.__main__ import main
from benchmarks.commands.train import defaults
from benchmarks.runs.run import read_run

EXACT = ["--model", "exact-gaussian", "--reward", "exact-quadratic", "--policy.trainable", "full", "--threads", "1"]


@pytest.mark.parametrize("command", [[], ["train"], *(["train", name] for name in ALGORITHMS), ["compare"], ["sample"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: diffusion-gym" in capsys.readouterr().out


@pytest.mark.parametrize("name", ALGORITHMS)
def test_train_evaluates_every_256_queries_where_nothing_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ALGORITHMS[name]
    config = defaults(name).algorithm
    assert config.evaluation.images == 16
    assert config.evaluation.every * config.images_per_iteration == 256
    assert entry.config.evaluation.images == 0, "Python's learn writes no pictures"
    own = EvaluationConfig(images=3)
    monkeypatch.setitem(ALGORITHMS, "own", replace(entry, config=replace(entry.config, evaluation=own)))
    assert defaults("own").algorithm.evaluation == own


@pytest.mark.parametrize(("options", "pictures"), [([], 2), (["--evaluation.images", "0"], 0)])
def test_a_run_has_pictures_unless_they_are_switched_off(tmp_path: Path, options: list[str], pictures: int) -> None:
    run = ["train", "ddpo-is", *EXACT, "--images-per-iteration", "16", "--num-envs", "16", "--reward-queries", "64"]
    assert main([*run, *options, "--folder", str(tmp_path / "run")]) == 0
    assert len(list((tmp_path / "run" / "images").glob("*.png"))) == pictures
    assert len(read_run(tmp_path / "run").evaluations) == pictures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ddpo-is", "--policy.eta", "2"], "eta must lie in [0, 1], got 2.0"),
        (["train", "ddpo-sf", "--updates-per-iteration", "2"], "--updates-per-iteration must be 1"),
        (["train", "rwr", "--beta", "0"], "beta must be positive, got 0.0"),
        (["train", "rwr", "--reward", "compressability"], "unknown reward 'compressability'"),
        (["train", "rwr", "--num-envs", "48"], "must divide --images-per-iteration"),
        (["compare", "--tasks", "beauty"], "unknown task 'beauty'"),
        (["compare", "--seeds", "1", "1"], "seeds must be different"),
        (["sample", "--images", "0"], "images >= 1"),
    ],
)
def test_bad_values_are_refused_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:  # tyro prints some errors itself
        code = stop.code
    assert code == 2
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "ddpo-is", *EXACT[:-2], "--policy.eta", "0"], "needs a stochastic sampler"),
        (["train", "ddpo-is", "--model", "no-such-model"], "unknown model 'no-such-model'"),
        (["train", "ddpo-is", "--model", "exact-gaussian", "--policy.trainable", "lora"], "no linear layers for LoRA"),
        (["train", "rwr", "--model", "exact-flow-gaussian", *EXACT[2:-2], "--policy.sampler", "ddim"], "'cps']"),
        (["train", "ddpo-is", "--device", "quantum"], "unknown device 'quantum'"),
        (["sample", "--run", "no-such-folder"], "holds no run"),
    ],
)
def test_errors_found_while_starting_need_no_traceback(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


WAITING = '''"""A reward that waits in its fourth call until the file go is there, and says so."""
import time
from pathlib import Path

HERE = Path(__file__).parent
calls = []

def waiting(images, prompts):
    calls.append(1)
    if len(calls) == 4:
        (HERE / "waits").touch()
        while not (HERE / "go").exists():
            time.sleep(0.01)
    return images.float().mean((1, 2, 3))
'''


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_resumes(tmp_path: Path) -> None:
    """Pressed while the third iteration is rewarded: the run ends with that step, two iterations are kept."""
    reward = tmp_path / "reward.py"
    reward.write_text(WAITING)

    def command(folder: str) -> list[str]:
        run = ["train", "ddpo-is", *EXACT, "--images-per-iteration", "16", "--num-envs", "16"]
        run += ["--reward", f"{reward}:waiting", "--evaluation.images", "4", "--evaluation.every", "100"]
        return [*run, "--reward-queries", "80", "--folder", str(tmp_path / folder)]

    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *command("parts")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "waits").exists():
        assert time.monotonic() < deadline, "the run never asked for rewards"
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("stopping: a checkpoint is written after this step"):
        assert process.poll() is None, "the run did not hear Ctrl-C"
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "The same command resumes." in output
    assert not json.loads((tmp_path / "parts" / "run.json").read_text())["complete"]
    assert read_checkpoint(tmp_path / "parts" / "checkpoint.zip").state["iteration"] == 2
    for folder in ("parts", "whole"):
        assert main(command(folder)) == 0
    files = [tmp_path / folder / "pipeline" / "exact_model.safetensors" for folder in ("parts", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
