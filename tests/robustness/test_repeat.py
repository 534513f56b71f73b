"""A run is what its folder says: ``train --config RUN`` repeats it bit for bit in a new process, every algorithm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import diffusion_gym
from algorithms.checkpoints.file import read_checkpoint
from benchmarks.__main__ import main
from benchmarks.commands.repeat import differences
from benchmarks.runs.folder import log_lines
from benchmarks.runs.run import read_run
from tests.builders.algorithms import KINDS

REPEAT = """
import sys
from benchmarks.__main__ import main
for name in sys.argv[1:]:
    assert main(["train", "--config", f"first/{name}", "--folder", f"again/{name}"]) == 0
"""
OPTIONS = [
    "--model",
    "exact-mixture",
    "--reward",
    "exact-linear:normalise,exact-quadratic:0.5",
    "--metrics",
    "diversity",
]
OPTIONS += ["--images-per-iteration", "16", "--num-envs", "8", "--images-per-prompt", "8", "--num-inference-steps", "4"]
OPTIONS += ["--policy.trainable", "full", "--evaluation.images", "4", "--seed", "3", "--reward-queries", "40"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every algorithm in ``first``, and its repetition by another process in ``again``."""
    root = tmp_path_factory.mktemp("repeat")
    for name in KINDS:
        arguments = ["train", name, *OPTIONS, "--threads", "1", "--folder", str(root / "first" / name)]
        assert main([*arguments, *(["--updates-per-iteration", "2"] if name.endswith("rwr") else [])]) == 0
    source = str(Path(diffusion_gym.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "2"}  # not what the runs had
    command = [sys.executable, "-c", REPEAT, *KINDS]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (root / "said").write_text(done.stdout, encoding="utf-8")
    return root


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the wall clock."""
    for line in lines:
        line.pop("clock", None), line.pop("cost/seconds", None), line.get("costs", {}).pop("seconds", None)
    return lines


@pytest.mark.parametrize("name", KINDS)
def test_the_repetition_is_equal_to_the_bit(runs: Path, name: str) -> None:
    """Specification, curves, evaluations, weights, moments, statistics and counters; 40 queries are 3 iterations."""
    first, again = runs / "first" / name, runs / "again" / name
    assert read_run(again).complete
    assert read_run(again).spec == read_run(first).spec
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        lines = timeless(log_lines(first, log))
        assert lines
        assert timeless(log_lines(again, log)) == lines
    states, tensors = [], []
    for folder in (first, again):
        checkpoint = read_checkpoint(folder / "checkpoint.zip")
        checkpoint.state["costs"].pop("seconds")
        states.append(checkpoint.state)
        tensors.append({key: value.numpy().tobytes() for key, value in checkpoint.tensors.items()})
    assert states[0]["iteration"] == 3
    assert states[0] == states[1]
    assert tensors[0] == tensors[1]


def test_it_says_what_it_repeats(runs: Path) -> None:
    said = (runs / "said").read_text(encoding="utf-8")
    assert f"repeating {Path('first') / 'rwr'}" in said
    assert (
        "rwr on exact-mixture toward exact-linear:normalise,exact-quadratic:0.5: 48 reward queries, 1 threads" in said
    )
    assert "not as it was" not in said


def test_the_folder_records_what_made_it(runs: Path) -> None:
    """Configuration, versions, hardware, threads and revision."""
    data = json.loads((runs / "first" / "rwr" / "run.json").read_text(encoding="utf-8"))
    assert data["spec"]["config"]["seed"] == 3
    made_by = data["provenance"]
    assert {"date", "python", "platform", "processor", "cores", "gpu", "revision", "command"} <= set(made_by)
    assert made_by["torch_threads"] == 1
    assert all(made_by["packages"].values())


def test_what_has_changed_since_is_told(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch, another number of threads, a reward file that was edited."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def f(images, prompts):\n    return images.float().mean((1, 2, 3))\n")
    train = ["train", "ddpo-sf", *OPTIONS, "--reward", "mine.py:f", "--threads", "1", "--folder", "run"]
    assert main(train) == 0
    data, spec = json.loads(Path("run/run.json").read_text()), read_run(Path("run")).spec
    assert differences(data, spec, 1) == []
    data["provenance"]["packages"]["torch"] = "1.0"
    Path("mine.py").write_text("def f(images, prompts):\n    return -images.float().mean((1, 2, 3))\n")
    told = differences(data, spec, 4)
    assert told[0] == "torch_threads 1, now 4"
    assert told[1].startswith("torch 1.0, now ")
    assert told[2] == "the reward file mine.py, which has changed"
    assert len(told) == 3


def test_a_resumed_run_notes_other_versions(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of a run that went on with another torch are not those of one machine: its folder says so."""
    folder = tmp_path / "run"
    train = ["train", "ddpo-sf", *OPTIONS, "--threads", "1", "--folder", str(folder), "--checkpoint-every", "1"]

    def full(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.runs.run.DiffusionAlgorithm.export", full)
        assert main(train) == 130
    data = json.loads((folder / "run.json").read_text())
    assert not data["complete"]
    data["provenance"]["packages"]["torch"] = "1.0"
    (folder / "run.json").write_text(json.dumps(data))
    assert main(train) == 0
    (later,) = json.loads((folder / "run.json").read_text())["resumed_with"]
    assert later["from_iteration"] == 3
    assert later["provenance"]["packages"]["torch"] != "1.0"


def test_kept_checkpoints(tmp_path: Path) -> None:
    """The latest two, each loadable; the last is that of the run's end."""
    train = ["train", "ddpo-sf", *OPTIONS, "--threads", "1", "--folder", str(tmp_path), "--checkpoint-every", "1"]
    assert main([*train, "--keep-checkpoints", "2"]) == 0
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [file.name for file in kept] == ["000002.zip", "000003.zip"]
    assert [read_checkpoint(file).state["iteration"] for file in kept] == [2, 3]
    assert kept[1].read_bytes() == (tmp_path / "checkpoint.zip").read_bytes()


def test_an_old_checkpoint_goes_only_once_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a file is taken away, the new checkpoint and a kept one are there and load."""
    train = ["train", "ddpo-sf", *OPTIONS, "--threads", "1", "--folder", str(tmp_path), "--checkpoint-every", "1"]
    ordinary, seen = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "checkpoints" and path.exists():
            newest = read_checkpoint(tmp_path / "checkpoint.zip").state["iteration"]
            others = [read_checkpoint(file).state["iteration"] for file in path.parent.glob("*.zip") if file != path]
            seen.append((int(path.stem), newest, max(others, default=newest)))
        ordinary(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert main([*train, "--keep-checkpoints", "2"]) == 0
    assert seen == [(1, 3, 3)]
