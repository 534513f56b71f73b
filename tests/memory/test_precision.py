"""Half precision in the forward pass alone: latents, log-probabilities and trained weights stay float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import DDPO, RWR

#: Precision of the frozen networks, and of the forward pass.
PRECISIONS = [("float32", "none"), ("float32", "bfloat16"), ("bfloat16", "none"), ("bfloat16", "bfloat16")]
FLOAT16 = [("float32", "float16"), ("float16", "none")]


@pytest.mark.ratio
@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize(("dtype", "autocast"), PRECISIONS + FLOAT16)
def test_ratio_is_one_and_what_is_trained_is_float32(
    small_run: Callable, largest_log_ratios: Callable, sample: Callable, trainable: str, dtype: str, autocast: str
) -> None:
    """Before the first update, bit for bit, guidance on; and the update changes the ratio."""
    algorithm = small_run(
        make={"dtype": dtype}, trainable=trainable, autocast=autocast, guidance_scale=5.0, learning_rate=1e-2
    )
    assert set(largest_log_ratios(algorithm).values()) == {0.0}
    rollout = sample(algorithm)
    assert rollout.latents.dtype == rollout.log_probs.dtype == torch.float32
    first, second = algorithm.update(rollout), algorithm.update(rollout)
    assert first["train/log_ratio_abs_max"] == 0.0
    if not algorithm.policy.computes_in_float16:  # there the first steps may be left out, see below
        assert second["train/log_ratio_abs_max"] > 1e-3
    weights = algorithm.policy.trainable_parameters().values()
    assert {value.dtype for value in weights} == {torch.float32}
    assert all(value.isfinite().all() for value in weights)
    moments = [value for state in algorithm.optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in moments} <= {torch.float32}


@pytest.mark.parametrize(("dtype", "autocast"), [PRECISIONS[1], PRECISIONS[2], *FLOAT16])
def test_half_precision_is_really_used(small_run: Callable, sample: Callable, dtype: str, autocast: str) -> None:
    """Its rounding shows in the latents: about 1e-3 (float16) or 1e-2 (bfloat16) of their size, not 1e-7."""
    kwargs: dict[str, Any] = {"trainable": "lora", "autocast": autocast}
    half, single = small_run(make={"dtype": dtype}, **kwargs), small_run(trainable="lora")
    gap = (sample(half).latents - sample(single).latents).abs().max()
    assert 1e-5 < gap < 0.3


def test_gradients_of_half_precision_point_where_float32s_do(small_run: Callable, sample: Callable) -> None:
    """Full weights, one rollout, three precisions: cosine above 0.99 (bfloat16 has 8 bits), and the same length."""
    seen: dict[str, torch.Tensor] = {}
    rollout = sample(small_run(trainable="full"))

    def catch(algorithm: DDPO) -> Callable:
        def step(optimizer: torch.optim.Optimizer) -> torch.Tensor:
            algorithm.gradient_steps.loss_scaler.unscale_(optimizer)
            grads = [p.grad.flatten() for p in algorithm.policy.trainable_parameters().values() if p.grad is not None]
            seen[algorithm.config.policy.autocast] = torch.cat(grads)
            return torch.zeros(())

        return step

    for autocast in ("none", "bfloat16", "float16"):
        # The widest clip range: rounding moves log-ratios off 0 here, for float32 sampled the rollout.
        algorithm = small_run(trainable="full", autocast=autocast, clip_range=80.0)
        algorithm.step = catch(algorithm)
        algorithm.update(rollout)
    for autocast in ("bfloat16", "float16"):
        assert torch.cosine_similarity(seen[autocast], seen["none"], 0) > 0.99
        assert float(seen[autocast].norm()) == pytest.approx(float(seen["none"].norm()), rel=0.1)


@pytest.mark.parametrize("cls", [DDPO, RWR])
def test_loss_scaling_skips_overflows(small_run: Callable, sample: Callable, cls: type) -> None:
    """float16 alone is scaled. An overflow leaves weights alone and halves the scale; the next step is made."""
    assert not small_run(cls, trainable="full").gradient_steps.loss_scaler.is_enabled()
    assert not small_run(cls, trainable="full", autocast="bfloat16").gradient_steps.loss_scaler.is_enabled()
    algorithm = small_run(cls, trainable="full", autocast="float16")
    rollout = sample(algorithm)
    algorithm.update(rollout)  # so that the scale exists
    overflowing = torch.full_like(next(iter(algorithm.policy.trainable_parameters().values())), 1e38)
    weight = next(iter(algorithm.policy.trainable_parameters().values()))
    optimizer = algorithm.make_optimizer()
    before, scale = weight.detach().clone(), algorithm.gradient_steps.loss_scaler.get_scale()
    algorithm.backward((weight * overflowing).sum())
    norm = algorithm.step(optimizer)
    assert not norm.isfinite()
    assert torch.equal(weight, before)
    assert algorithm.gradient_steps.loss_scaler.get_scale() == scale / 2
    algorithm.backward(weight.sum())
    norm = algorithm.step(optimizer)
    assert float(norm) == pytest.approx(weight.numel() ** 0.5)  # unscaled before it is measured and clipped
    assert not torch.equal(weight, before)


def test_loss_scale_is_resumed(small_run: Callable, sample: Callable, tmp_path: Path, tiny_sd: str) -> None:
    algorithm = small_run(trainable="full", autocast="float16")
    weight = next(iter(algorithm.policy.trainable_parameters().values()))
    algorithm.backward((weight * 1e38).sum())
    algorithm.step(algorithm.optimizer)
    algorithm.save(tmp_path / "half")
    loaded = DDPO.load(tmp_path / "half")
    assert loaded.gradient_steps.loss_scaler.get_scale() == algorithm.gradient_steps.loss_scaler.get_scale() == 2.0**15
    assert loaded.gradient_steps.loss_scaler.state_dict() == algorithm.gradient_steps.loss_scaler.state_dict()
