"""``--policy.compile`` and ``--policy.channels-last``: the ratio is exactly 1, and nothing but the speed changes."""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from algorithms import DDPO, execution
from algorithms.requirements import check_ranks
from benchmarks.runs.memory import estimate_memory

SMALL: dict[str, Any] = {"num_envs": 6, "images_per_iteration": 6, "updates_per_iteration": 1, "chunk_size": 4}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Graphs that were made since the last ``clear()``, by a backend that runs them as they are."""
    made: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable:
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(execution, "BACKEND", backend)
    return made


def compiled(make_env: Callable, **settings: Any) -> DDPO:
    env = make_env("exact-mixture", steps=3, reward="exact-linear", prompts=["north", "east"])
    return DDPO(env, **{"trainable": "full", "compile": True, **SMALL, **settings})


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_sampling_and_scoring_share_one_graph(
    make_env: Callable, sample: Callable, graphs: list[Any], guidance: float
) -> None:
    """Chunks of 4 and 2 images, without gradients and with them, before and after an update: one shape, one graph."""
    algorithm = compiled(make_env, guidance_scale=guidance)
    graphs.clear()  # of the check that torch.compile works
    rollout = sample(algorithm, 6)
    ratios = [algorithm.update(rollout)["train/log_ratio_abs_max"] for _ in range(2)]
    assert ratios[0] == 0.0
    assert ratios[1] > 0
    assert len(graphs) == (1 if guidance == 1 else 2), "with guidance 2 images are 4 rows, 4 images 8"
    plain = sample(compiled(make_env, guidance_scale=guidance, compile=False), 6)
    torch.testing.assert_close(rollout.latents, plain.latents)


def test_more_graphs_are_made_than_torchs_own_limit(make_env: Callable, graphs: list[Any]) -> None:
    """As chunks are halved, and as a notebook builds one algorithm after the other."""
    algorithm = compiled(make_env)
    graphs.clear()
    for size in range(1, torch._dynamo.config.recompile_limit + 3):
        algorithm.policy.chunk_size = size
        algorithm.policy.distribution(algorithm.policy.blank_rows(size))
    assert len(graphs) == size


def test_names_copies_checkpoints_and_the_estimate_know_nothing_of_the_graph(
    make_env: Callable, sample: Callable, graphs: list[Any], digest: Callable, tmp_path: Path
) -> None:
    algorithm, plain = compiled(make_env), compiled(make_env, compile=False)
    graphs.clear()
    estimates = [dataclasses.replace(estimate_memory(one), unseen=0) for one in (algorithm, plain)]
    assert estimates[0] == estimates[1]
    assert not graphs
    algorithm.update(sample(algorithm, 6))
    assert list(algorithm.get_parameters()["policy"]) == list(plain.get_parameters()["policy"])
    algorithm.save(tmp_path / "checkpoint.zip")
    loaded, copied = DDPO.load(tmp_path / "checkpoint.zip"), copy.deepcopy(algorithm)
    for other in (loaded, copied):
        assert digest(other) == digest(algorithm)
        assert torch.equal(sample(other, 6).latents, sample(algorithm, 6).latents)
        other.update(sample(other, 6))
        assert not torch.equal(sample(other, 6).latents, sample(algorithm, 6).latents), "it runs its own weights"


def test_where_compiling_cannot_work_it_is_refused(make_env: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Callable:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(execution, "BACKEND", backend)
    with pytest.raises(ValueError, match=r"does not work here \(.*no working C\+\+ compiler.*leave out --policy.comp"):
        compiled(make_env)
    monkeypatch.setattr(execution, "check_compile", lambda device: None)
    monkeypatch.setattr("algorithms.policy.check_compile", lambda device: None)
    algorithm = compiled(make_env)
    with pytest.raises(ValueError, match=r"could not make one graph of \w+ \(.*no working C\+\+ compiler"):
        algorithm.policy.distribution(algorithm.policy.blank_rows(4))


@pytest.mark.parametrize("option", ["compile", "channels_last"])
def test_sharded_weights_are_refused(option: str) -> None:
    config, ranks = DDPO.config_class.for_model("exact-gaussian", **{option: True}), SimpleNamespace(size=1)
    ranks.sharded = True
    with pytest.raises(ValueError, match=f"--policy.{option.replace('_', '-')} does not support sharded"):
        check_ranks("DDPO", DDPO.requires(config), config, ranks)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_channels_last_changes_the_layout_alone(
    make_env: Callable, sample: Callable, tiny_sd: str, digest: Callable, tmp_path: Path, trainable: str
) -> None:
    """Adapters of convolutions too: trained, averaged, saved, loaded and exported; the model's own weights stay."""
    env = make_env(tiny_sd, steps=2, reward="compressibility", prompts=["cat", "dog"])
    settings: dict[str, Any] = {**SMALL, "trainable": trainable, "targets": ("all",), "guidance_scale": 3.0}
    algorithm = DDPO(env, channels_last=True, ema_decay=0.9, **settings)
    weights = [value for value in algorithm.policy.denoiser.parameters() if value.ndim == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    assert all(value.is_contiguous() for value in algorithm.mdp.model.pipe.unet.parameters())
    rollout = sample(algorithm, 6)
    torch.testing.assert_close(rollout.latents, sample(DDPO(env, **settings), 6).latents, rtol=1e-4, atol=1e-4)
    assert [algorithm.update(rollout)["train/log_ratio_abs_max"] > 0 for _ in range(2)] == [False, True]
    algorithm.save(tmp_path / "checkpoint.zip")
    loaded = DDPO.load(tmp_path / "checkpoint.zip")
    assert digest(loaded) == digest(algorithm)
    strides = [[value.stride() for value in each.average.tensors.values()] for each in (algorithm, loaded)]
    assert strides[0] == strides[1]
    loaded.export(tmp_path / "tuned")


def test_channels_last_needs_convolutions(make_env: Callable) -> None:
    with pytest.raises(ValueError, match="channels_last is for denoisers with two-dimensional convolutions"):
        compiled(make_env, compile=False, channels_last=True)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler (g++)")
@pytest.mark.parametrize("settings", [{}, {"channels_last": True}, {"gradient_checkpointing": True}])
def test_torchs_own_kernels_keep_the_ratio(
    make_env: Callable, sample: Callable, tiny_sd: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    torch._dynamo.reset()
    env = make_env(tiny_sd, steps=2, reward="compressibility", prompts=["cat", "dog"])
    algorithm = DDPO(env, compile=True, guidance_scale=1.0, **SMALL, **settings)
    rollout = sample(algorithm, 6)
    assert [algorithm.update(rollout)["train/log_ratio_abs_max"] > 0 for _ in range(2)] == [False, True]
    plain = sample(DDPO(env, guidance_scale=1.0, **SMALL), 6)
    torch.testing.assert_close(rollout.latents, plain.latents, rtol=1e-3, atol=1e-3)
    algorithm.export(tmp_path / "tuned")


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler (g++)")
def test_torchs_own_kernels_keep_the_ratio_on_an_exact_model(make_env: Callable, sample: Callable) -> None:
    torch._dynamo.reset()
    algorithm = compiled(make_env)
    rollout = sample(algorithm, 6)
    assert [algorithm.update(rollout)["train/log_ratio_abs_max"] > 0 for _ in range(2)] == [False, True]
