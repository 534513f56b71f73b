"""A user's own reward in a run: it fails, keeps the run, is mended and goes on; what the folder says of it."""

import dataclasses
import hashlib
import json
import warnings
from pathlib import Path

import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.checkpoints.file import read_checkpoint
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.runs.run import read_run, run
from benchmarks.runs.spec import RunSpec, TaskConfig
from diffusion_gym.naming import file_name
from diffusion_gym.rewards import RewardError

GOOD = "def first(images, prompts):\n    return images[:, 0].float().mean((1, 2))\n"
BROKEN = GOOD.replace("return", "assert float(images[0, 0, 0, 0]) < 0, 'out of order'\n    return")


def spec_of(reward: str, evaluation: EvaluationConfig, **task: object) -> RunSpec:
    """Return a run of four iterations of 16 images."""
    changes = {"images_per_iteration": 16, "num_envs": 8, "trainable": "full", "chunk_size": 8}
    config = override(ALGORITHMS["ddpo-is"].config, evaluation=evaluation, **changes)
    return RunSpec("ddpo-is", config, TaskConfig("exact-mixture", reward, num_inference_steps=4, **task), 64)


def failing_after(images: int) -> str:
    """Return the good reward's file, which fails once it has scored so many images in this process."""
    head, body = GOOD.split("\n", 1)
    counting = f"    seen[0] += len(images)\n    assert seen[0] <= {images}, 'the server is gone'\n"
    return f"seen = [0]\n{head}\n{counting}{body}"


def test_a_failed_reward_keeps_its_run_and_the_mended_one_goes_on_to_the_bit(tmp_path: Path) -> None:
    """It fails in the third iteration's second round; nothing of the first two is lost, and nothing changes."""
    file = tmp_path / "mine.py"
    # An evaluation of 8 before the first and after the second iteration, two iterations of 16, and half a third.
    file.write_text(failing_after(8 + 32 + 8 + 8), encoding="utf-8")
    spec = spec_of(f"{file}:first:2,exact-linear:normalise", EvaluationConfig(images=8, every=2))
    message = r"(?s)'first' failed on 8 images \(prompts .*the server is gone.*\(mine\.py, line 4\).*" + (
        r"is at iteration 2, in .*checkpoint\.zip\. Once the reward is corrected, the same command resumes"
    )
    with pytest.raises(RewardError, match=message):
        run(spec, tmp_path / "parts")
    assert not read_run(tmp_path / "parts").complete
    assert read_checkpoint(tmp_path / "parts" / "checkpoint.zip").state["iteration"] == 2

    broken = file.read_bytes()
    file.write_text(GOOD, encoding="utf-8")
    with pytest.warns(UserWarning, match=r"mine\.py' changed since this run began; from iteration 2 on"):
        resumed = run(spec, tmp_path / "parts")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        whole = run(spec, tmp_path / "whole")
        run(spec, tmp_path / "parts")  # complete: nothing to warn of
    weights = [(tmp_path / name / "pipeline" / "exact_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert [line.iteration for line in resumed.evaluations] == [0, 2, 4]
    for key in ("rewards", "parts"):
        assert [getattr(line, key) for line in resumed.evaluations] == [
            getattr(line, key) for line in whole.evaluations
        ]
    versions = json.loads((tmp_path / "parts" / "run.json").read_text())["reward_files"]
    assert [(v["sha256"], v["from_iteration"]) for v in versions] == [
        (hashlib.sha256(broken).hexdigest(), 0),
        (hashlib.sha256(file.read_bytes()).hexdigest(), 2),
    ]
    # The folder can be read, and its pictures drawn, where the file is gone.
    file.unlink()
    assert read_run(tmp_path / "parts").spec == spec


def test_the_command_line_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(BROKEN, encoding="utf-8")
    command = ["train", "ddpo-is", "--model", "exact-gaussian", "--policy.trainable", "full", "--threads", "1"]
    command += ["--images-per-iteration", "4", "--num-envs", "4", "--reward-queries", "4", "--reward", "mine.py:first"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "error: reward 'first' failed on 4 images (prompts 'anywhere'" in error
    assert "AssertionError('out of order') (mine.py, line 2)" in error
    checkpoint = Path("runs") / f"{file_name('mine.py:first')}-ddpo-is-0" / "checkpoint.zip"
    assert f"is at iteration 0, in {checkpoint}" in error
    assert "Traceback" not in error
    (tmp_path / "mine.py").write_text(GOOD, encoding="utf-8")
    with pytest.warns(UserWarning, match="changed since"):
        assert main(command) == 0


def test_held_out_evaluations_have_their_own_entries(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("north\nsouth\n", encoding="utf-8")
    (tmp_path / "held.txt").write_text("east\n", encoding="utf-8")
    evaluation = EvaluationConfig(images=8, every=4, held_out_prompts=str(tmp_path / "held.txt"))
    spec = spec_of("exact-linear:2", evaluation, prompts=str(tmp_path / "train.txt"), metrics=("diversity",))
    record = run(spec, tmp_path / "run")
    for line in record.evaluations:
        assert len(line.rewards) == len(line.held_out.rewards) == 8
        assert line.held_out.rewards == pytest.approx([2 * x for x in line.held_out.parts["exact-linear"]])
        assert (tmp_path / "run" / "images" / f"{line.iteration:06d}-held-out.png").is_file()
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["held_out/reward_mean"] == pytest.approx(sum(line.held_out.rewards) / 8, abs=1e-5)


def test_a_folder_from_before_these_settings_goes_on(tmp_path: Path) -> None:
    """Its specification lacks them; it is the same run with their defaults."""
    spec = spec_of("exact-linear", EvaluationConfig(images=8, every=4))
    run(spec, tmp_path, should_stop=lambda: True)
    data = json.loads((tmp_path / "run.json").read_text())
    del data["spec"]["config"]["rewards_beside_sampling"]
    del data["spec"]["config"]["evaluation"]["held_out_prompts"], data["spec"]["config"]["evaluation"]["deployed"]
    (tmp_path / "run.json").write_text(json.dumps(data))
    assert read_run(tmp_path).spec == spec
    assert run(spec, tmp_path).complete
    other = dataclasses.replace(spec, config=override(spec.config, rewards_beside_sampling=True))
    with pytest.raises(ValueError, match=r"holds another run \(config.rewards_beside_sampling False there, True asked"):
        run(other, tmp_path)
