"""``sample``: base and tuned side by side, whatever was trained and in whatever precision."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from algorithms import DDPOConfig, EvaluationConfig, PolicyConfig
from algorithms.config.base import override
from algorithms.policy import DenoisingPolicy, Rows
from benchmarks.__main__ import main
from benchmarks.commands import sample
from benchmarks.commands.sample import Sample
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.throughput.options import Throughput
from diffusion_gym.choices import DEFAULT_MODEL
from diffusion_gym.recommended import INSTRUCT_PIX2PIX
from diffusion_gym.transitions import Gaussian


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(folder: Path, model: str, task: dict[str, Any] | None = None, **policy: Any) -> Path:
    config = override(
        DDPOConfig(updates_per_iteration=1, num_envs=4, images_per_iteration=4, learning_rate=0.05),
        policy=PolicyConfig(chunk_size=4, **policy),
    )
    settings = {"model": model, "num_inference_steps": 2, **(task or {})}
    run(RunSpec("ddpo-is", config, TaskConfig(**settings), 8), folder)
    return folder


def draw(arguments: list[str], output: Path, images: int = 2, size: int = 16) -> np.ndarray:
    """Run the command; returns its pictures, (rows, columns, H, W, 3)."""
    assert main(["sample", *arguments, "--images", str(images), "--scale", "1", "--output", str(output)]) == 0
    sheet = np.asarray(Image.open(output))
    rows, columns = (sheet.shape[0] + 2) // (size + 2), (sheet.shape[1] + 2) // (size + 2)
    step = size + 2
    return np.stack(
        [[sheet[r * step : r * step + size, c * step : c * step + size] for c in range(columns)] for r in range(rows)]
    )


@pytest.mark.parametrize(
    ("task", "policy"),
    [
        ({}, {"trainable": "lora", "train": "text_encoder"}),
        ({}, {"trainable": "full", "train": "both", "guidance_scale": 3.0}),
        ({"dtype": "bfloat16", "vae_tiling": True}, {"trainable": "lora", "gradient_checkpointing": True}),
    ],
    ids=str,
)
def test_base_and_tuned_side_by_side(
    tmp_path: Path, tiny_sd: str, task: dict[str, Any], policy: dict[str, Any]
) -> None:
    """The left half is the base model's, as drawn without the run; the right half is another."""
    folder = trained(tmp_path / "run", tiny_sd, task, **policy)
    both = draw(["--run", str(folder), "--prompts", "cat", "a dog"], tmp_path / "both.png")
    assert both.shape == (2, 4, 16, 16, 3)
    base = ["--model", tiny_sd, "--num-inference-steps", "2", "--prompts", "cat", "a dog"]
    base += ["--guidance-scale", str(policy.get("guidance_scale", 1.0)), "--dtype", task.get("dtype", "float32")]
    alone = draw(base, tmp_path / "base.png")
    # Rounding of another batch and encoder: of uint8 alone in float32, of 8 bits of mantissa through all in bfloat16.
    levels = 8 if "dtype" in task else 1
    assert np.abs(both[:, :2].astype(int) - alone.astype(int)).max() <= levels
    assert (both[:, 2:] != both[:, :2]).any()


def test_another_device_or_dtype_than_the_runs(
    tmp_path: Path, tiny_sd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in bfloat16 is drawn in float32 where that is asked for; a device that is not there is refused."""
    folder = trained(tmp_path / "run", tiny_sd, {"dtype": "bfloat16"}, trainable="lora")
    arguments = ["--run", str(folder), "--prompts", "cat"]
    own = draw(arguments, tmp_path / "own.png")
    other = draw([*arguments, "--dtype", "float32"], tmp_path / "other.png")
    assert (own != other).any()
    assert np.abs(own.astype(int) - other.astype(int)).mean() < 10
    if not torch.cuda.is_available():
        assert main(["sample", *arguments, "--device", "cuda"]) == 2
        assert "torch sees no CUDA device" in capsys.readouterr().err


def test_held_out_prompts_may_be_drawn(tmp_path: Path, tiny_sd: str) -> None:
    """They were kept from training, and are what one wants to see."""
    (tmp_path / "train.txt").write_text("cat\n")
    (tmp_path / "held-out.txt").write_text("dog\n")
    evaluation = EvaluationConfig(images=4, held_out_prompts=str(tmp_path / "held-out.txt"))
    config = DDPOConfig(num_envs=4, images_per_iteration=4, evaluation=evaluation)
    task = TaskConfig(model=tiny_sd, num_inference_steps=2, prompts=str(tmp_path / "train.txt"))
    run(RunSpec("ddpo-is", config, task, 4), tmp_path / "run")
    assert draw(["--run", str(tmp_path / "run"), "--prompts", "dog"], tmp_path / "dogs.png").shape[1] == 4


def test_no_more_rows_are_drawn_than_pictures(tmp_path: Path, tiny_sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts share a forward, of as many rows as there are pictures or, of more pictures, of chunk_size (16)."""
    rows: list[int] = []
    distribution = DenoisingPolicy.distribution

    def counted(self: DenoisingPolicy, chunk: Rows, *transition: Any) -> Gaussian:
        rows.append(len(chunk))
        return distribution(self, chunk, *transition)

    monkeypatch.setattr(DenoisingPolicy, "distribution", counted)
    arguments = ["--model", tiny_sd, "--num-inference-steps", "2", "--prompts", "cat", "a dog", "an ant"]
    few = draw(arguments, tmp_path / "few.png", images=2)
    assert rows == [6, 6]
    rows.clear()
    many = draw(arguments, tmp_path / "many.png", images=6)
    assert rows == [16, 16, 2, 2]
    # The first prompt's first pictures have the same noise; other kernels round otherwise.
    assert np.abs(few[0].astype(int) - many[0, :2].astype(int)).max() <= 1


def test_one_side_of_a_split_is_a_set(tmp_path: Path, tiny_sd: str) -> None:
    """Nine of the 45 animals are held out; a sentence with an @ in it stays a text."""
    model = ["--model", tiny_sd, "--num-inference-steps", "1", "--prompts"]
    assert draw([*model, "animals@held-out"], tmp_path / "set.png", images=1).shape[:2] == (9, 1)
    assert draw([*model, "a cat @home"], tmp_path / "text.png", images=1).shape[:2] == (1, 1)


def test_a_run_whose_model_has_moved(tmp_path: Path, tiny_sd: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--model`` says where it lies now: the same pictures; another model is refused, and so is none."""
    shutil.copytree(tiny_sd, tmp_path / "m1")
    folder = trained(tmp_path / "run", str(tmp_path / "m1"), trainable="lora")
    arguments = ["--run", str(folder), "--prompts", "cat"]
    before = draw(arguments, tmp_path / "before.png")
    (tmp_path / "m1").rename(tmp_path / "m2")
    after = draw([*arguments, "--model", str(tmp_path / "m2")], tmp_path / "after.png")
    np.testing.assert_array_equal(after, before)
    other = ["sample", *arguments, "--output", str(tmp_path / "other.png"), "--model", "emoji-animals"]
    assert main(other) == 2
    assert "the environment has 'emoji-animals', which is another" in capsys.readouterr().err


def test_model_and_sampler_are_set_as_in_training(tmp_path: Path, tiny_sd: str) -> None:
    """Each setting has its effect; guidance is the recommended one unless it is given."""
    base = ["--model", tiny_sd, "--num-inference-steps", "2", "--prompts", "cat"]
    plain = draw(base, tmp_path / "plain.png")
    for changed in (
        ["--guidance-rescale", "1"],
        ["--negative-prompt", "a dog"],
        ["--scheduler", "LCMScheduler"],
    ):
        assert (draw([*base, *changed], tmp_path / "changed.png") != plain).any(), changed
    larger = draw([*base, "--height", "32", "--width", "32"], tmp_path / "larger.png", size=32)
    assert larger.shape == (1, 2, 32, 32, 3)


def test_a_model_that_edits_is_drawn_with_its_recommended_image_guidance() -> None:
    _, policy = Sample(model="emoji-animals").base()
    assert policy.image_guidance_scale == 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "recommended_for", lambda model: INSTRUCT_PIX2PIX)
        _, policy = Sample(model="some/editor").base()
    assert (policy.guidance_scale, policy.image_guidance_scale) == (7.5, 1.5)


def test_a_lora_on_top_of_a_merged_one_is_not_merged_alone(tmp_path: Path) -> None:
    """Neither drawn with, trained on from nor measured with; one that was itself trained on, or is on the model, is.

    So is any on another model: the refusal says to save one with the first LoRA merged.
    """
    start, file = str(tmp_path), tmp_path / "pytorch_lora_weights.safetensors"
    file.touch()
    for before, refused in (("merge", True), ("train", False), (None, False)):
        task: dict[str, Any] = {
            "model": DEFAULT_MODEL,
            "start_from": before and "first",
            "start_from_mode": before or "merge",
        }
        (tmp_path / "run.json").write_text(json.dumps({"spec": {"task": task}}), encoding="utf-8")
        spec = RunSpec("ddpo-is", DDPOConfig(), TaskConfig(start_from=start))
        RunSpec("ddpo-is", DDPOConfig(), TaskConfig("merged", start_from=start)).check()
        of_sample, of_file = (lambda: Sample(start_from=start)), (lambda: Sample(start_from=str(file)))
        for use in (of_sample, of_file, lambda: Throughput(start_from=start), spec.check):
            with pytest.raises(ValueError, match="merged the LoRA 'first'") if refused else contextlib.nullcontext():
                use()
