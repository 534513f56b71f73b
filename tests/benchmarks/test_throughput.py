"""``throughput``: its figures follow from its raw times, its floor does the program's work, bad input is refused."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.throughput.growth
from algorithms import PolicyConfig, execution
from benchmarks.__main__ import main
from benchmarks.throughput.command import Bench
from benchmarks.throughput.floors import Floor
from benchmarks.throughput.growth import measure_growth, resized
from benchmarks.throughput.iteration import build, iterate, iterate_counting
from benchmarks.throughput.options import Throughput
from benchmarks.throughput.profile import profile
from diffusion_gym.models import DiffusionModel, load_model

SMALL = ["--images", "8", "--num-envs", "8", "--num-inference-steps", "3", "--threads", "1"]
EXACT = ["--model", "exact-mixture", "--reward", "exact-linear"]
FULL = ["--policy.trainable", "full", "--policy.chunk-size", "4"]


@pytest.fixture
def small_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grow from 2 images in one repetition."""
    for name, value in {"_IMAGES": 2, "_CHUNK": 2, "_REPEATS": 1}.items():
        monkeypatch.setattr(benchmarks.throughput.growth, name, value)


def run(arguments: list[str], folder: Path) -> tuple[dict[str, Any], str]:
    """Run the command; return its JSON and its Markdown."""
    assert main(["throughput", *arguments, "--output", str(folder / "speed.json")]) == 0
    return json.loads((folder / "speed.json").read_text()), (folder / "speed.md").read_text()


def test_figures_follow_from_the_raw_times(
    tmp_path: Path, small_growth: None, capsys: pytest.CaptureFixture[str]
) -> None:
    result, text = run([*EXACT, *SMALL, *FULL, "--pairs", "3", "--growth", "--profile"], tmp_path)
    for phase in ("sampling", "training"):
        row, chunks = result[phase], result["chunks"][phase]
        program = [pair["program"]["wall"] for pair in row["pairs"]]
        floor = [pair["floor"]["wall"] for pair in row["pairs"]]
        assert len(program) == 3
        assert min(program + floor + list(chunks.values())) > 0
        assert row["images_per_second"] == pytest.approx(8 / statistics.median(program))
        assert row["floor_images_per_second"] == pytest.approx(8 / statistics.median(floor))
        ratios = [a / b for a, b in zip(program, floor, strict=True)]
        assert row["above_floor"] == pytest.approx(statistics.median(ratios) - 1)
        same = [pair["program"]["wall"] / pair["same_passes"]["wall"] for pair in row["pairs"]]
        assert row["above_same_passes"] == pytest.approx(statistics.median(same) - 1)
        assert row["megabytes_above_floor"] == pytest.approx(row["megabytes"] / row["floor_megabytes"] - 1)
        assert row["floor_megabytes"] > 10
        assert list(chunks) == ["2", "4", "8"]
        assert f"| {phase} | {row['images_per_second']:.1f} |" in text
    assert list(result["chunks"]["decoding"]) == ["1", "2", "4", "8"]
    iterations = result["iteration_chunks"]
    assert list(iterations) == ["1", "2", "4"], "an update has 4 images"
    best = min(iterations, key=lambda size: float(iterations[size]))
    assert f"**Fastest: --policy.chunk-size {best}.**" in text
    assert result["iteration"] | {"training_rows": 8 * 3, "updates": 2} == result["iteration"]
    for shares in result["profile"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert "output" not in result["settings"], "paths belong to one machine"
    assert [row["axis"] for row in result["growth"]] == ["images"] * 3 + ["steps"] * 3, "points have no size"
    assert text in capsys.readouterr().out


def test_a_profile_names_the_parts_and_counts_no_time_twice(tiny_sd: str) -> None:
    options = Throughput(model=tiny_sd, num_inference_steps=2, images=4, num_envs=4, policy=PolicyConfig(chunk_size=4))
    algorithm = build(options)
    shares = profile(algorithm, lambda: sum(phase.wall for phase in iterate(algorithm).values()))
    networks = {"denoiser: forward, sampling", "denoiser: forward, training", "denoiser: backward", "VAE: decode"}
    assert networks | {"text encoder", "reward", "optimizer step"} <= set(shares["parts"])
    assert min(shares["parts"].values()) > 0
    assert {"convolutions: forward", "convolutions: backward", "matrix products"} <= set(shares["operations"])
    hooks = [algorithm.policy.denoiser._forward_hooks, algorithm.policy.denoiser._forward_pre_hooks]
    assert not any(hooks), "nothing is labelled afterwards"


def test_growth_varies_one_thing_at_a_time(monkeypatch: pytest.MonkeyPatch, tiny_sd: str) -> None:
    """What would be measured on a pipeline; that it is measured, the exact model shows."""

    def case(axis: str, options: Throughput, model: DiffusionModel) -> dict[str, Any]:
        assert options.images % options.num_envs == 0
        return {"case": (axis, options.images, options.num_inference_steps, *model.latent_shape[1:])}

    monkeypatch.setattr(benchmarks.throughput.growth, "_grown", case)
    assert [row["case"] for row in measure_growth(Throughput(model=tiny_sd))] == [
        *(("images", images, 10, 8, 8) for images in (16, 32, 64)),
        *(("steps", 16, steps, 8, 8) for steps in (5, 10, 20)),
        *(("latent size", 16, 10, size, size) for size in (8, 16, 32)),
    ]


def test_resized_models_share_networks_and_decode_to_their_size(tiny_sd: str) -> None:
    model = load_model(tiny_sd)
    larger = resized(model, 2)
    assert (larger.latent_shape, larger.image_shape) == ((4, 16, 16), (3, 32, 32))
    assert larger.decode(torch.zeros(1, *larger.latent_shape)).shape == (1, *larger.image_shape)
    assert vars(larger)["pipe"] is vars(model)["pipe"]
    assert model.latent_shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("algorithm_name", "guidance_scale"), [("ddpo-is", 1.0), ("ddpo-is", 3.0), ("awm", 1.0), ("branched", 1.0)]
)
def test_floor_makes_the_programs_forwards_and_changes_nothing(algorithm_name: str, guidance_scale: float) -> None:
    """As many rows in sampling and in training as an iteration of the program; the weights stay as they were."""
    policy = PolicyConfig(trainable="full", chunk_size=4, guidance_scale=guidance_scale)
    options = Throughput(
        model="exact-mixture", reward="exact-linear", num_inference_steps=3, policy=policy, images=8, num_envs=8
    )
    algorithm = build(dataclasses.replace(options, algorithm=algorithm_name))
    updates = algorithm.config.updates_per_iteration  # type: ignore[attr-defined]
    seen: list[tuple[int, bool]] = []
    algorithm.policy.denoiser.register_forward_hook(
        lambda module, given, output: seen.append((len(given[0]), torch.is_grad_enabled()))
    )
    rows = iterate_counting(algorithm)
    of_program = sorted(seen)
    floor = Floor(algorithm, updates, rows)
    before = {name: value.detach().clone() for name, value in algorithm.policy.trainable_parameters().items()}
    seen.clear()
    floor.sampling(4)
    floor.decoding(2)
    floor.training(4)
    assert all(torch.equal(before[name], value) for name, value in algorithm.policy.trainable_parameters().items())
    if algorithm_name == "branched":  # each step has passes of its own there: as many rows, not as many passes
        assert [sum(rows for rows, grad in seen if grad == kind) for kind in (False, True)] == [
            sum(rows for rows, grad in of_program if grad == kind) for kind in (False, True)
        ]
    else:
        assert sorted(seen) == of_program
    seen.clear()
    floor.sampling()
    floor.training()
    assert sorted(seen) == of_program, "without a chunk's size the passes are the program's own"


def test_a_compiled_policy_is_measured_above_a_plain_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph is of the program's size, and no floor makes one of its own."""
    made: list[Any] = []
    monkeypatch.setattr(execution, "BACKEND", lambda graph, inputs: made.append(graph) or graph.forward)
    policy = PolicyConfig(trainable="full", chunk_size=4, compile=True)
    sizes: dict[str, Any] = {"num_inference_steps": 2, "images": 8, "num_envs": 8}
    bench = Bench(Throughput(model="exact-mixture", reward="exact-linear", policy=policy, **sizes))
    found = len(made)
    assert found == 2, "of the check that torch.compile works, and of the program's chunks"
    bench.run_floor("training")
    assert len(made) == found


def test_it_measures_the_model_with_its_settings(tiny_sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ``train``; also where growth is measured."""
    options = Throughput(model=tiny_sd, num_inference_steps=2, images=2, num_envs=2, height=24, width=32)
    assert build(options).mdp.model.image_shape == (3, 24, 32)
    monkeypatch.setattr(benchmarks.throughput.growth, "_grown", lambda axis, options, model: {"at": model.image_shape})
    assert measure_growth(options)[0] == {"at": (3, 24, 32)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "expected --pairs >= 1"),
        (["--algorithm", "ppo"], "unknown algorithm 'ppo'; expected one of ['awm'"),
        (["--images", "48"], "--num-envs (32) must divide --images (48)"),
        (["--num-inference-steps", "0"], "--num-inference-steps must be at least 1, got 0"),
        (["--reward", "compressability"], "unknown reward 'compressability'"),
        (["--height", "0"], "--height must be a positive number of pixels"),
    ],
)
def test_bad_values_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["throughput", *arguments])
    except SystemExit as stop:  # tyro prints some errors itself
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
