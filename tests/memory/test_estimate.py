"""The estimate of memory against what torch's allocator gives out during a run, and against hand-counted sizes."""

import dataclasses
import importlib
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from algorithms import DDPO, GRPO, RWR, DDPOConfig, PolicyConfig
from benchmarks.commands.train import Output, Train, train
from benchmarks.runs.memory import LiveBytes, estimate_memory
from benchmarks.runs.spec import TaskConfig

#: Estimate over measurement stays within this, both ways.
FACTOR = 1.15


def allocated(run: Callable[[], Any], trace: Path) -> int:
    """The most bytes that the CPU's allocator gave out during ``run`` beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    "config",
    [
        {"trainable": "lora"},
        {"trainable": "full"},
        {"trainable": "lora", "gradient_checkpointing": True, "guidance_scale": 3.0},
        {"trainable": "full", "train": "both"},
    ],
    ids=str,
)
def test_within_the_stated_factor_of_what_is_allocated(
    small_run: Callable, tmp_path: Path, config: dict[str, Any]
) -> None:
    """Two iterations, so that moments and their copy exist, on the embedded model, of which full weights are 12 MB."""
    model = {"model": "emoji-animals", "num_inference_steps": 2, "prompt_tokens": "train" in config}
    algorithm = small_run(make=model, num_envs=6, chunk_size=6, **config)
    estimate = estimate_memory(algorithm)
    made = estimate.gradients + estimate.moments + estimate.rollout + estimate.working
    measured = allocated(lambda: algorithm.learn(2 * 6 * 2), tmp_path / "trace.json")
    assert measured / FACTOR < made < measured * FACTOR, (measured, made)


def test_weights_by_hand(small_run: Callable) -> None:
    """LoRA beside frozen networks in bfloat16: shared weights count once, adapters are float32."""
    algorithm = small_run(make={"dtype": "bfloat16"}, trainable="lora")
    pipe = algorithm.mdp.model.pipe
    frozen = sum(p.numel() for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters())
    adapters = sum(p.numel() for p in algorithm.policy.trainable_parameters().values())
    estimate = estimate_memory(algorithm)
    assert estimate.frozen["bfloat16"] == 2 * frozen
    assert estimate.trained == estimate.gradients == 4 * adapters
    assert estimate.moments == 8 * adapters
    # 6 images of T = 3: 4 latents of 4 x 8 x 8 each, 3 log-probs, a 16 x 32 embedding, a reward, a picture in bytes.
    assert estimate.rollout == 6 * (4 * 4 * 64 * 4 + 3 * 4 + 16 * 32 * 4 + 4 + 3 * 16 * 16)


def test_options_take_what_they_promise(small_run: Callable) -> None:
    """The comparisons of docs/memory.md: checkpointing saves activations, RWR stores no trajectories, chunks scale."""
    plain = estimate_memory(small_run(trainable="full", chunk_size=8))
    assert (
        estimate_memory(small_run(trainable="full", chunk_size=8, gradient_checkpointing=True)).working < plain.working
    )
    assert estimate_memory(small_run(RWR, trainable="full")).rollout < plain.rollout
    groups: dict[str, Any] = {"images_per_prompt": 2, "updates_per_iteration": 1}
    means = estimate_memory(algorithm := small_run(GRPO, centred_ratio=True, **groups)).rollout
    transitions = algorithm.config.images_per_iteration * algorithm.mdp.num_inference_steps
    latent = 4 * math.prod(algorithm.mdp.model.latent_shape)
    assert means == estimate_memory(small_run(GRPO, **groups)).rollout + transitions * latent
    half = estimate_memory(small_run(trainable="full", chunk_size=4))
    assert 0.4 * plain.working < half.working < 0.7 * plain.working
    assert (half.trained, half.moments, half.frozen) == (plain.trained, plain.moments, plain.frozen)
    guided = estimate_memory(small_run(trainable="full", chunk_size=8, guidance_scale=3.0))
    assert guided.working > 1.5 * plain.working


def test_size_of_the_images_is_counted(small_run: Callable) -> None:
    """Twice the height is twice the latents and the pictures: of 6 images, 4 latents of 4 x 8 x 8 more each."""
    small, large = (estimate_memory(small_run(make={"height": height})) for height in (None, 32))
    assert large.rollout - small.rollout == 6 * (4 * 4 * 64 * 4 + 3 * 16 * 16)
    assert large.working > 1.5 * small.working


def test_tokens_take_less_than_embeddings(small_run: Callable) -> None:
    """A rollout that trains the text encoder stores 16 tokens of 8 bytes an image, not 16 x 32 floats."""
    tokens = estimate_memory(small_run(make={"prompt_tokens": True}, train="text_encoder"))
    embeddings = estimate_memory(small_run())
    assert embeddings.rollout - tokens.rollout == 6 * 16 * (32 * 4 - 8)


def test_encoded_prompts_by_hand(small_run: Callable) -> None:
    """Two prompts' embeddings, and with tokens 16 integers more each; what the cache was in the end, and its bound."""
    algorithm = small_run()
    plain = estimate_memory(algorithm)
    algorithm.learn(18)
    assert plain.prompts == algorithm.mdp.prompt_cache.nbytes == 2 * 16 * 32 * 4
    assert f"{'encoded prompts':<34}{'4.1 kB':>10}" in plain.describe()
    assert estimate_memory(small_run(make={"prompt_tokens": True})).prompts == 2 * (16 * 32 * 4 + 16 * 8)
    algorithm.mdp.prompt_cache.limit = 3000
    assert estimate_memory(algorithm).prompts == 3000
    bounded = estimate_memory(algorithm)
    assert bounded.total - bounded.unseen == plain.total - plain.unseen - plain.prompts + 3000


def test_main_memory_is_told_apart_from_another_devices(small_run: Callable) -> None:
    """On a GPU the copy and the encoded prompts lie beside it, and are no part of its sum."""
    plain = estimate_memory(small_run())
    other = dataclasses.replace(plain, device=torch.device("meta"))
    assert plain.total - other.total == plain.prompts
    assert other.describe().endswith("\nand of main memory 4.1 kB: encoded prompts")


@pytest.mark.parametrize("cls", [DDPO, RWR])
def test_estimating_changes_nothing(small_run: Callable, digest: Callable, cls: type) -> None:
    """No weight, no gradient, no random number: the run that follows is the same bit for bit."""
    settings = {"batch_size": 4, "updates_per_iteration": 2} if cls is RWR else {}
    runs = [small_run(cls, trainable="full", **settings) for _ in range(2)]
    state = torch.get_rng_state()
    estimate_memory(runs[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.grad is None for value in runs[0].policy.parameters())
    for algorithm in runs:
        algorithm.learn(18)
    assert digest(runs[0]) == digest(runs[1])


def test_what_is_no_tensor_is_counted_on_the_cpu(small_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels' workspace, here 64 MB beside a forward and backward pass, which torch's tensors do not show."""
    algorithm = small_run(chunk_size=1)
    train_blank = algorithm.train_blank

    def with_workspace(rows: Any) -> None:
        workspace = np.ones(64_000_000, np.uint8)
        time.sleep(0.5)
        train_blank(rows)
        del workspace

    without = estimate_memory(algorithm).unseen
    monkeypatch.setattr(algorithm, "train_blank", with_workspace)
    estimate = estimate_memory(algorithm)
    assert estimate.unseen > max(60e6, without + 30e6)
    assert estimate.total > estimate.unseen + estimate.working
    assert "kernels' workspace and gaps beside" in estimate.describe()


def test_live_bytes_counts_storage_while_it_lives() -> None:
    """By hand: two tensors of 4 kB at a time, then one; views and what was there before cost nothing."""
    before = torch.zeros(1024)
    with LiveBytes([before]) as live:
        first = before + 1
        second = first * 2
        assert live.now == live.peak == 8192
        del first
        assert live.now == 4096
        view = second.reshape(32, 32).t()
        before.add_(1)
        assert live.now == 4096
        del second
        assert live.now == 4096  # the view holds it
        del view
        assert live.now == 0
    assert live.peak == 8192


def test_train_prints_it_before_it_starts(tmp_path: Path, tiny_sd: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = DDPOConfig(num_envs=4, images_per_iteration=4, policy=PolicyConfig(chunk_size=4))
    task = TaskConfig(model=tiny_sd, num_inference_steps=2)
    output = Output(folder=tmp_path / "run", reward_queries=4, threads=1)
    assert train("ddpo-is", Train(task=task, output=output, algorithm=config)) == 0
    printed = capsys.readouterr().out
    assert re.search(r"memory on cpu, estimated: [\d.]+ [kMG]B, of [\d.]+ GB free", printed)
    assert printed.index("memory on cpu") < printed.index("done: ")


def test_where_it_does_not_fit_it_says_so(small_run: Callable) -> None:
    estimate = estimate_memory(small_run())
    with mock.patch("benchmarks.runs.memory.free_bytes", return_value=1000):
        assert "less is free" in estimate.describe()
    algorithm = small_run()
    algorithm.policy.denoiser.register_forward_pre_hook(_refuse)
    with pytest.raises(MemoryError, match="gradient-checkpointing"):
        estimate_memory(algorithm)


def _refuse(*_: Any) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_an_estimate_without_values_is_that_of_the_model(tiny_sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/graphics-cards.md: tensors that have sizes alone are counted as those of a loaded model are."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs" / "tools"))
    cards = importlib.import_module("graphics_cards")

    def build() -> dict[str, torch.nn.Module]:
        return {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(tiny_sd, subfolder="unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(tiny_sd, subfolder="vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(tiny_sd, subfolder="text_encoder")),
        }

    published = cards.MODELS["sd15"].family(build, "float32")
    for settings in ({}, {"trainable": "full"}):
        real = estimate_memory(DDPO(gymnasium.make("DiffusionDenoise-v0", model=tiny_sd), **settings))
        on_gpu = real.total - real.prompts - real.unseen + max(0, real.trained - real.working)
        assert cards.estimate(published, **settings) == pytest.approx(on_gpu, rel=0.01)
