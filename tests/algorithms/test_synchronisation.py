"""Nothing waits for the device inside the loop: what the host knows it need not ask.

On a GPU each such call lets the device run dry. Here they are counted on the CPU, by a dispatch mode: their number may
grow with iterations, but not with denoising steps or chunks.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms import DDPO, RWR

#: Reading a value, a shape that depends on values, and a copy of the host's data onto the device.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2", "lift_fresh"}


class Waits(TorchDispatchMode):
    """Counts calls that would wait for a device, or copy to it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING or by_mask:
            self.calls[name] += 1
        return function(*args, **(kwargs or {}))


def waits(make_env: Callable, model: str, cls: type, steps: int, chunk_size: int, **config: Any) -> Counter[str]:
    """Of one iteration of 8 images."""
    reward, prompts = ("exact-linear", None) if model.startswith("exact") else ("compressibility", ["cat", "dog"])
    env = make_env(model, steps=steps, reward=reward, prompts=prompts)
    algorithm = cls(
        env, images_per_iteration=8, num_envs=8, images_per_prompt=4, chunk_size=chunk_size, updates_per_iteration=1,
        trainable="full", **config,
    )  # fmt: skip
    algorithm.learn(8 * steps)  # what is made once (prompts, optimizer state) is made now
    with Waits() as counted:
        algorithm.learn(8 * steps, reset_num_timesteps=False)
    return counted.calls


@pytest.mark.parametrize(
    ("cls", "config"),
    [(DDPO, {}), (DDPO, {"guidance_scale": 3.0, "kl_penalty": 0.1}), (RWR, {"batch_size": 16})],
    ids=["ddpo", "ddpo-guided-kl", "rwr"],
)
@pytest.mark.parametrize("pipeline", [False, True])
def test_waits_do_not_grow_with_steps_or_chunks(
    make_env: Callable, tiny_sd: str, pipeline: bool, cls: type, config: dict[str, Any]
) -> None:
    model = tiny_sd if pipeline else "exact-gaussian"
    few = waits(make_env, model, cls, 3, 8, **config)
    many = waits(make_env, model, cls, 9, 2, **config)
    assert many == few


def test_waits_are_counted() -> None:
    """A count that is always 0 would pass the test above."""
    with Waits() as counted:
        x = torch.tensor([1.0, 2.0])
        bool((x > 1).any())
        x[x > 1].sum().item()
    assert counted.calls == {"lift_fresh": 1, "_local_scalar_dense": 2, "index": 1}
