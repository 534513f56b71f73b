"""The command line's defaults: those of the model it names, as searched for; what was taken is said and recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.commands.train import defaults
from benchmarks.parsing import named_model
from benchmarks.runs.folder import RUN
from benchmarks.runs.run import run as train_in
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.suite import EMBEDDED, SUITES
from benchmarks.throughput.options import Throughput
from diffusion_gym.models.stable_diffusion import StableDiffusion

EXACT = ["--model", "exact-mixture", "--reward", "exact-linear", "--reward-queries", "64", "--threads", "1"]


@pytest.mark.parametrize("name", ["ddpo-is", "ddpo-sf", "rwr", "sparse-rwr", "sb3-ppo"])
def test_the_embedded_model_is_trained_as_compare_trains_it(name: str) -> None:
    """Suites name their settings themselves, so that results stay what they are; a plain command has the same."""
    plain, searched = defaults(name), EMBEDDED.config(name, 0)
    assert plain.task == TaskConfig()
    assert replace(override(plain.algorithm, sampler="ddim"), evaluation=searched.evaluation) == searched


@pytest.mark.parametrize("name", ["ddpo-is", "ddpo-sf", "rwr", "sparse-rwr", "sb3-ppo"])
def test_an_exact_model_is_trained_as_its_suite_trains_it(name: str) -> None:
    """But for what changes no result: the model has one prompt, so that all images are of one."""
    plain, suite = defaults(name, "exact-mixture").algorithm, SUITES["exact"].recipe.config(name, 0)
    speed: dict[str, Any] = {"chunk_size": 16, "num_envs": 64, "images_per_prompt": 1, "sampler": "ddim"}
    evaluated = replace(plain, evaluation=suite.evaluation)
    assert override(evaluated, **speed) == override(suite, **speed)


def test_stable_diffusion_is_trained_as_published(tiny_sd: str) -> None:
    plain = defaults("ddpo-is", tiny_sd)
    assert plain.task.num_inference_steps == StableDiffusion.recommended.num_inference_steps == 50
    config = plain.algorithm
    assert (config.learning_rate, config.images_per_iteration) == (3e-4, 256)
    assert (config.policy.guidance_scale, config.policy.lora.targets) == (5.0, ("attention",))
    assert Throughput.of_model(tiny_sd).policy == config.policy


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ([], "emoji-animals"),
        (["--model", "a/b", "--seed", "1"], "a/b"),
        (["--model=a/b"], "a/b"),
        (["--model", "a", "--learning-rate", "-1e-4", "--model", "b"], "b"),
        (["--reward", "aesthetic", "--model"], "emoji-animals"),
        (["--mode", "a"], "emoji-animals"),
    ],
)
def test_the_model_is_known_before_the_rest_is_read(words: list[str], model: str) -> None:
    assert named_model(words) == model


def test_help_shows_the_defaults_of_the_model_that_is_named(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "ddpo-is", "--model", "exact-mixture", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Defaults follow --model; these are for exact-mixture." in shown
    assert "3e-4 for LoRA. (default: 0.02)" in shown


def test_what_was_taken_is_said_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record holds numbers, so that it means the same when another model or version recommends others."""
    assert main(["train", "ddpo-is", *EXACT, "--learning-rate", "0.01", "--folder", str(tmp_path)]) == 0
    taken = "num_inference_steps 10, trainable full, chunk_size 64, updates_per_iteration 2\n"
    assert f"taken from what exact-mixture recommends: {taken}" in capsys.readouterr().out
    data = json.loads((tmp_path / RUN).read_text(encoding="utf-8"))
    config, task = data["spec"]["config"], data["spec"]["task"]
    assert (config["learning_rate"], config["updates_per_iteration"]) == (0.01, 2)
    assert (config["policy"]["trainable"], task["num_inference_steps"]) == ("full", 10)
    assert (task["device"], data["provenance"]["device"]) == ("auto", "cpu")


def test_a_run_that_moves_to_another_device_says_so(tmp_path: Path) -> None:
    """``auto`` stays what the run is; where it ran stands in its provenance."""
    config = defaults("ddpo-is", "exact-gaussian").algorithm
    spec = RunSpec("ddpo-is", config, TaskConfig("exact-gaussian", "exact-linear", num_inference_steps=2), 192)
    asked = iter(range(10**6))
    train_in(spec, tmp_path / "run", should_stop=lambda: next(asked) > 10)  # in the second iteration
    file = tmp_path / "run" / RUN
    data = json.loads(file.read_text(encoding="utf-8"))
    data["provenance"]["device"] = "cuda:0"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert train_in(spec, tmp_path / "run").complete
    (later,) = json.loads(file.read_text(encoding="utf-8"))["resumed_with"]
    assert (later["from_iteration"], later["provenance"]["device"]) == (1, "cpu")
