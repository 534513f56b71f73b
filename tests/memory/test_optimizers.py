"""8-bit moments: refused without bitsandbytes, chosen with the configuration's values, kept in checkpoints.

A stand-in with bitsandbytes' kinds of state (an integer step, moments in bytes) serves where the package is not
installed; where it is, the last tests train with it.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from algorithms import DDPO, RWR

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


class AdamW8bit(torch.optim.Optimizer):
    """Counts steps in an integer, and steps by 1e-3 times its one moment, which has 256 values."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state |= {"step": 0, "state1": torch.zeros_like(parameter, dtype=torch.uint8)}
                state["absmax1"] = torch.ones(3, device=parameter.device)
            state["step"] += 1
            state["state1"].copy_((128 + 1e3 * parameter.grad + 0.5 * (state["state1"].float() - 128)).clamp(0, 255))
            state["absmax1"].mul_(1.5)
            parameter.sub_(1e-3 * (state["state1"].float() - 128) * state["absmax1"][0] / state["step"])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[AdamW8bit]:
    """Put the stand-in where ``bitsandbytes.optim.AdamW8bit`` is looked for.

    peft asks for the package once and remembers the answer, so it is asked before.
    """
    from peft import import_utils

    import_utils.is_bnb_available()
    import_utils.is_bnb_4bit_available()
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    package.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)
    optim.AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    package.optim = optim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return AdamW8bit


def test_without_the_package_it_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's id is not even made, or it would be the unknown id that is complained about."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for cls in (DDPO, RWR):  # RWR makes its optimizer in each update, which would be late
        with pytest.raises(ValueError, match=r"needs the package bitsandbytes.*diffusion-denoise-gym\[bitsandbytes\]"):
            cls("NoSuchEnvironment-v0", optimizer="adamw8bit")


def test_the_configuration_chooses(small_run: Callable, stand_in: type[AdamW8bit]) -> None:
    values = {"learning_rate": 0.5, "adam_beta1": 0.1, "adam_beta2": 0.2, "weight_decay": 0.3}
    optimizer = small_run(optimizer="adamw8bit", trainable="full", **values).optimizer
    assert isinstance(optimizer, stand_in)
    assert {key: optimizer.defaults[key] for key in ("lr", "betas", "weight_decay")} == {
        "lr": 0.5, "betas": (0.1, 0.2), "weight_decay": 0.3,
    }  # fmt: skip
    assert type(small_run(trainable="full").optimizer) is torch.optim.AdamW


@pytest.mark.parametrize(
    "real",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")),
    ],
)
def test_resumed_it_equals_a_run_that_never_stopped(
    small_run: Callable, digest: Callable, tmp_path: Path, request: pytest.FixtureRequest, real: bool
) -> None:
    """To the bit, moments in bytes and integer steps included; full weights, of which some are large and some small."""
    if not real:
        request.getfixturevalue("stand_in")
    whole, stopped = (small_run(optimizer="adamw8bit", trainable="full").learn(18) for _ in range(2))
    stopped.save(tmp_path / "run")
    resumed = DDPO.load(tmp_path / "run")
    dtypes = {value.dtype for key, value in resumed.get_parameters()["optimizer"].items() if key.endswith("state1")}
    assert torch.uint8 in dtypes
    assert all(isinstance(state["step"], int) for state in resumed.optimizer.state.values())
    for algorithm in (whole, resumed):
        algorithm.learn(18, reset_num_timesteps=False)
    assert digest(resumed) == digest(whole)


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")
def test_it_moves_the_weights_as_adam_does(small_run: Callable) -> None:
    """After one update nearly every weight has moved the way that float32 moments move it."""
    start = small_run(trainable="full").get_parameters()["policy"]
    moves = []
    for optimizer in ("adamw", "adamw8bit"):
        weights = small_run(trainable="full", optimizer=optimizer).learn(18).get_parameters()["policy"]
        moves.append(torch.cat([(weights[name] - start[name]).flatten() for name in start]))
    assert float((moves[0].sign() == moves[1].sign()).float().mean()) > 0.95
    assert torch.cosine_similarity(moves[0], moves[1], 0) > 0.95
