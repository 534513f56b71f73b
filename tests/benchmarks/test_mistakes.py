"""The likeliest mistakes on the command line: each error says what was expected, what came, and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main

DDPO = ["train", "ddpo-is"]
#: A model that is ready in milliseconds, for the mistakes that show once the model is there.
EXACT = [*DDPO, "--model", "exact-gaussian", "--reward", "exact-quadratic", "--policy.trainable", "full"]

#: What was typed -> nothing is loaded, and no folder is needed.
TYPED = {
    "unknown-command": ["tune"],
    "misspelled-help": ["--hlep"],
    "misspelled-config": ["train", "--confg", "run"],
    "value-with-a-dash": ["sample", "--prompts", "-cat"],
    "no-algorithm": ["train", "--reward", "compressibility"],
    "unknown-algorithm": ["train", "ppo"],
    "misspelled-option": [*DDPO, "--learning-rat", "1e-4"],
    "option-without-its-group": [*DDPO, "--guidance-scale", "5"],
    "option-of-another-program": [*DDPO, "--lr", "1e-4"],
    "no-number": [*DDPO, "--learning-rate", "fast"],
    "no-value": [*DDPO, "--seed"],
    "negative-learning-rate": [*DDPO, "--learning-rate", "-1e-4"],
    "negative-guidance": [*DDPO, "--policy.guidance-scale", "-5"],
    "negative-seed": [*DDPO, "--seed", "-1"],
    "no-reward-queries": [*DDPO, "--reward-queries", "0"],
    "no-inference-steps": [*DDPO, "--num-inference-steps", "0"],
    "num-envs-do-not-divide": [*DDPO, "--images-per-iteration", "100"],
    "updates-do-not-divide": [*DDPO, "--updates-per-iteration", "3"],
    "images-per-prompt-do-not-divide": ["train", "rwr", "--images-per-prompt", "48"],
    "several-updates-of-ddpo-sf": ["train", "ddpo-sf", "--updates-per-iteration", "4"],
    "unknown-reward": [*DDPO, "--reward", "compressability"],
    "reward-of-a-module": [*DDPO, "--reward", "my_rewards:redness"],
    "unknown-metric": [*DDPO, "--metrics", "clip"],
    "prompt-instead-of-a-file": [*DDPO, "--prompts", "a cat"],
    "missing-prompt-file": [*DDPO, "--prompts", "my-prompts.txt"],
    "empty-prompt-file": [*DDPO, "--prompts", "empty.txt"],
    "unknown-task": ["compare", "--tasks", "beauty"],
    "same-seed-twice": ["compare", "--seeds", "0", "0"],
    "quick-with-a-budget": ["compare", "--quick", "--reward-queries", "100"],
    "search-of-an-unknown-algorithm": ["search", "--algorithms", "ppo"],
    "sample-of-a-run-with-other-steps": ["sample", "--run", "run", "--num-inference-steps", "20"],
}

#: What only the files, the machine or the model can tell.
FOUND = {
    "missing-model-folder": [*DDPO, "--model", "./models/sd15"],
    "hub-model-offline": [*DDPO, "--model", "stable-diffusion-v1-5/stable-diffusion-v1-5"],
    "cuda-without-cuda": [*DDPO, "--device", "cuda"],
    "mps-without-mps": [*DDPO, "--device", "mps"],
    "unknown-device": [*DDPO, "--device", "gpu"],
    "lora-on-the-exact-model": [*EXACT, "--policy.trainable", "lora"],
    "eta-0": [*EXACT, "--policy.eta", "0"],
    "reward-without-a-gradient": [
        "train",
        "draft",
        "--model",
        "exact-gaussian",
        "--reward",
        "exact-linear,compressibility:0.1",
    ],
    "more-steps-than-training-times": [*EXACT, "--num-inference-steps", "5000"],
    "folder-of-another-run": [*EXACT, "--folder", "run", "--learning-rate", "1"],
    "folder-of-a-compared-run": ["compare", "--folder", "compared", "--quick"],
    "damaged-run": [*EXACT, "--folder", "damaged"],
    "damaged-checkpoint": [*EXACT, "--folder", "run"],
    "file-instead-of-a-folder": [*EXACT, "--folder", "empty.txt/run"],
    "sample-without-a-run": ["sample", "--run", "nowhere"],
    "sample-of-a-missing-file": ["sample", "--prompts", "my-prompts.txt"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with an empty file, a run whose checkpoint is cut short, and one with damaged JSON."""
    root = tmp_path_factory.mktemp("mistakes")
    (root / "empty.txt").touch()
    assert main([*EXACT, "--folder", str(root / "run"), "--reward-queries", "64", "--threads", "1"]) == 0
    checkpoint = root / "run" / "checkpoint.zip"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-40])
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text('{"spec":', encoding="utf-8")
    # compare --quick, begun before with another version of its settings
    begun = json.loads((root / "run" / "run.json").read_text(encoding="utf-8"))
    folder = root / "compared" / "compressibility" / "ddpo-is" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    return root


@pytest.mark.parametrize("name", [*TYPED, *FOUND])
def test_mistake(
    name: str,
    folders: Path,
    snapshot: Callable[[str, str], None],
    terminal: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folders)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    arguments = {**TYPED, **FOUND}[name]
    budget = ["--reward-queries", "64", "--threads", "1"] if name == "damaged-checkpoint" else []
    before = sorted(folders.rglob("*"))
    try:
        status: object = main([*arguments, *budget])
    except SystemExit as stop:  # tyro ends the process itself
        status = stop.code
    error = capsys.readouterr().err.replace(torch.__version__, "VERSION")
    assert status == 2
    assert "Traceback" not in error
    assert sorted(folders.rglob("*")) == before, "a mistake leaves nothing behind"
    snapshot(f"mistakes/{name}", f"$ diffusion-gym {' '.join(arguments)}\n\n{error}\n\nexit status {status}")


def test_no_snapshot_is_stale() -> None:
    kept = {file.stem for file in (Path(__file__).parent / "snapshots" / "mistakes").glob("*.txt")}
    assert kept == {*TYPED, *FOUND}


@pytest.mark.parametrize("command", ["compare", "search", "sample"])
def test_only_train_is_shared_by_several_ranks(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a launcher starts them, by the variables that it sets."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {command} was started on 2 ranks (WORLD_SIZE), but only train shares its work")
    assert list(tmp_path.iterdir()) == []


def test_sample_needs_the_checkpoint_of_its_run(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoint.zip").unlink()
    assert main(["sample", "--run", "run", "--prompts", "centre"]) == 2
    assert "no checkpoint" in capsys.readouterr().err
