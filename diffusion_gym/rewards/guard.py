"""Settings of the whole process that a user's reward may change, and that the run needs back as they were."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_gym.errors import warn_once


class _Setting(NamedTuple):
    """One setting: its name in a warning, how it is read, and how it is set to what was read."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


class _Generators:
    """States of torch's own generators, equal where their seeds are: drawing numbers is what they are for."""

    def __init__(self) -> None:
        generators = [torch.default_generator]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            generators += torch.cuda.default_generators
        self._states = [(generator, generator.initial_seed(), generator.get_state()) for generator in generators]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Generators) and [s[1] for s in self._states] == [s[1] for s in other._states]

    __hash__ = None  # type: ignore[assignment]

    def restore(self) -> None:
        """Set the generators to these states."""
        for generator, _, state in self._states:
            generator.set_state(state)


def _precision() -> tuple[str | None, list[str | None]]:
    """Return the precision of float32 products: torch's old setting, where it can be read, and those since 2.9."""
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the new settings can hold what the old one cannot say
        old = None
    return old, [getattr(owner, "fp32_precision", None) for owner in _precise()]


def _set_precision(value: tuple[str | None, list[str | None]]) -> None:
    old, new = value
    if old is not None:
        torch.set_float32_matmul_precision(old)
    for owner, precision in zip(_precise(), new, strict=True):
        if precision is not None:
            owner.fp32_precision = precision


def _precise() -> tuple[Any, ...]:
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    newer = (getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), getattr(mkldnn, "matmul", None))
    return torch.backends, cuda.matmul, cudnn, mkldnn, *newer


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _set_cuda_device(device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None is the CPU, and costs nothing


def _cudnn(name: str) -> _Setting:
    cudnn = torch.backends.cudnn
    return _Setting(f"torch.backends.cudnn.{name}", partial(getattr, cudnn, name), partial(setattr, cudnn, name))


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


def _change_directory(folder: Path | None) -> None:
    if folder is not None:
        os.chdir(folder)


_SETTINGS = (
    _Setting("gradients (torch.set_grad_enabled)", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("the default device", torch.get_default_device, _set_default_device),
    _Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("the seed of torch's generator", _Generators, _Generators.restore),
    _Setting("deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _Setting("the precision of float32 products", _precision, _set_precision),
    _Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Setting("the current CUDA device", _cuda_device, _set_cuda_device),
    *map(_cudnn, ("enabled", "benchmark", "deterministic")),
    _Setting("NumPy's handling of errors (np.seterr)", np.geterr, lambda value: np.seterr(**value)),
    _Setting("the working directory", _working_directory, _change_directory),
)

#: Whose code has changed settings so far, once per time.
restorations: list[str] = []


@contextlib.contextmanager
def settings_kept(who: str) -> Iterator[None]:
    """Restore the settings of the process after a user's code, and warn once of what it changed.

    Args:
        who: whose code it is, as a warning's first words.
    """
    before = [(setting, setting.read()) for setting in _SETTINGS]
    try:
        yield
    finally:
        changed = [setting.name for setting, value in before if _restored(setting, value)]
        if changed:
            restorations.append(who)
            warn_once(
                f"{who} changed settings of the whole process: {', '.join(changed)}. They were restored; change such "
                "settings only while they are needed, for example in 'with torch.no_grad():'."
            )


def _restored(setting: _Setting, value: Any) -> bool:
    """Set a setting to its former value, and return whether it had another."""
    if setting.read() == value:
        return False
    setting.write(value)
    return True
