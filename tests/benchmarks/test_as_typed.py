"""Errors on the command line name the options as they are typed; in Python, the fields."""

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.as_typed import as_typed
from benchmarks.commands.evaluate import Evaluate
from benchmarks.commands.train import Train, defaults

EXACT = ["train", "ddpo-is", "--model", "exact-gaussian", "--reward", "exact-quadratic"]
DEPLOYED = "--evaluation.deployed"
#: What is typed -> what the message says of it: while options are read, and once the model is there.
MISTAKES = {
    "--policy.guidance-scale -1": "--policy.guidance-scale must be at least 0",
    "--policy.eta 2": "--policy.eta must lie in",
    "--height 0": "--height must be a positive number of pixels",
    "--start-from-mode train": "--start-from-mode 'train' needs a LoRA to train on; name it with --start-from.",
    "--evaluation.images 0 --evaluation.held-out-prompts animals": "--evaluation.held-out-prompts needs an evaluation; "
    "set --evaluation.images",
    "--evaluation.seed -1": "--evaluation.seed must be at least 0",
    "--reward aesthetic?chunk_size=0": "the reward's chunk_size must be an integer of at least 1, got 0",
    f"{DEPLOYED}.num-inference-steps 5000": f"{DEPLOYED}.num-inference-steps must be an integer from 1 to 1000",
    f"{DEPLOYED}.guidance-scale -1": f"{DEPLOYED}.guidance-scale must be at least 0",
    f"{DEPLOYED}.guidance-scale nan": f"{DEPLOYED}.guidance-scale must be a finite number",
    f"{DEPLOYED}.eta 1.5": f"{DEPLOYED}.eta must lie in [0, 1], got 1.5",
    f"{DEPLOYED}.eta 0 {DEPLOYED}.scheduler DDIMScheduler": f"{DEPLOYED}.eta 0 is the training sampler's noise, and "
    f"{DEPLOYED}.scheduler DDIMScheduler has its own",
    f"{DEPLOYED}.scheduler Euler": f"unknown {DEPLOYED}.scheduler 'Euler'",
    f"{DEPLOYED}.always": f"{DEPLOYED}.always needs a deployed sampler; give {DEPLOYED}.eta",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_setting_is_named_as_it_is_typed(typed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EXACT, *typed.split(), "--folder", str(tmp_path / "run"), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert MISTAKES[typed] in error
    assert not re.search(r"(?<!reward's )(?<![\w-])[a-z]+_[a-z_]+", error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["train", "ddpo-is"], ["sample"], ["throughput"]])
def test_also_what_is_found_before_options_are_read(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defaults follow the model, so that it is looked at first."""
    (tmp_path / "run.json").write_text("{}")
    assert main([*command, "--model", str(tmp_path)]) == 2
    assert f"to train on from it, give the model that it was trained on, with --start-from '{tmp_path}'" in (
        capsys.readouterr().err
    )


def test_words_that_are_no_setting_stay(tmp_path: Path) -> None:
    """Plain words in a sentence, quoted text, paths, calls, what another thing has, and settings of other programs."""
    kind, default = Train[type(defaults("ddpo-is").algorithm)], defaults("ddpo-is")  # type: ignore[misc]
    for text in (
        "the images of a prompt need a reward; its seed must differ, and the policy needs noise",
        "'num_inference_steps' of 'few num_envs' or a/num_envs.txt, the model's and the run's",
        "a.py:num_envs, as in learn(num_envs)",
        "the reward's chunk_size must be an integer of at least 1; give model=FOLDER or beta=NUMBER",
        "sample_size 3",
    ):
        assert as_typed(text, kind, default) == text
    assert as_typed("scheduler 'few num_envs' must be", kind, default) == "--scheduler 'few num_envs' must be"
    given = "leave out compile, or compile=True and compile=False; config.policy.eta 1 there, deployed.eta 0"
    expected = (
        "leave out --policy.compile, or --policy.compile and --policy.no-compile; --policy.eta 1 there, "
        "--evaluation.deployed.eta 0"
    )
    assert as_typed(given, kind, default) == expected
    assert as_typed("deployed.eta must", Evaluate) == "--eta must"
