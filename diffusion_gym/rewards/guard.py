"""Settings of the whole process that a user's reward may change, and that the run needs back as they were."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from diffusion_gym.errors import warn_once


@dataclass(frozen=True)
class _Setting:
    """One setting: its name in a warning, how it is read, and how it is set to what was read."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _attributes(owner: Any, *names: str) -> list[_Setting]:
    """Return settings that are attributes of a module of torch.backends."""
    read, write = partial(partial, getattr, owner), partial(partial, setattr, owner)
    return [_Setting(f"{owner.__name__}.{name}", read(name), write(name)) for name in names]


def _autocast(device: str) -> list[_Setting]:
    def read() -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return [_Setting(f"autocast on {device}", read, write)]


def _attention(kind: str) -> list[_Setting]:
    cuda = torch.backends.cuda
    return [_Setting(f"{kind} attention", getattr(cuda, f"{kind}_sdp_enabled"), getattr(cuda, f"enable_{kind}_sdp"))]


class _Seeds:
    """States of torch's own generators, equal where their seeds are: drawing numbers is what they are for."""

    def __init__(self) -> None:
        generators = [torch.default_generator]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            generators += torch.cuda.default_generators
        self._states = [(generator, generator.initial_seed(), generator.get_state()) for generator in generators]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seeds) and [seed for _, seed, _ in self._states] == [s for _, s, _ in other._states]

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
    backends = torch.backends
    cudnn = (getattr(backends.cudnn, name, None) for name in ("conv", "rnn"))
    cpu = (backends.mkldnn, getattr(backends.mkldnn, "matmul", None))
    return backends, backends.cuda.matmul, backends.cudnn, *cudnn, *cpu


def _current_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _set_current_device(device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None is the CPU, and costs nothing


def _modes() -> tuple[list[Any], list[Any]]:
    """Return the modes that torch's calls pass through, as inside 'with torch.device(...)'."""
    return _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()


def _set_modes(before: tuple[list[Any], list[Any]]) -> None:
    """Leave modes that a reward entered and did not leave."""
    functions, dispatches = before
    for _ in _get_current_function_mode_stack():
        _pop_mode()
    for mode in functions:
        _push_mode(mode)
    for mode in reversed(_get_current_dispatch_mode_stack()[len(dispatches) :]):
        mode.__exit__(None, None, None)


def _autocast_depth() -> int:
    """Return how many autocast contexts are open: while one is, weights that were cast are kept, and would be stale."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth


def _set_autocast_depth(depth: int) -> None:
    for _ in range(_autocast_depth() - depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


def _change_directory(folder: Path | None) -> None:
    if folder is not None:
        os.chdir(folder)


_OPEN: list[torch.inference_mode] = []  # what undoes an inference mode that was entered and never left lasts as long


def _set_inference_mode(mode: bool) -> None:
    _OPEN.append(torch.inference_mode(mode))
    _OPEN[-1].__enter__()


_SETTINGS: tuple[_Setting, ...] = (
    _Setting("inference mode", torch.is_inference_mode_enabled, _set_inference_mode),  # sets gradients too: first
    _Setting("gradients (torch.set_grad_enabled)", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("the default device", torch.get_default_device, _set_default_device),
    _Setting("modes such as 'with torch.device(...)'", _modes, _set_modes),  # the default device is one of them
    _Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("the seed of torch's generator", _Seeds, _Seeds.restore),
    _Setting("deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    _Setting("the precision of float32 products", _precision, _set_precision),
    _Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Setting("the current CUDA device", _current_device, _set_current_device),
    *_attributes(torch.backends.cudnn, "enabled", "benchmark", "deterministic"),
    *_attributes(torch.backends.mkldnn, "enabled"),
    *(setting for kind in ("flash", "mem_efficient", "math", "cudnn") for setting in _attention(kind)),
    *(setting for device in ("cpu", "cuda") for setting in _autocast(device)),
    _Setting("the depth of autocast", _autocast_depth, _set_autocast_depth),
    _Setting("NumPy's handling of errors (np.seterr)", np.geterr, lambda value: np.seterr(**value)),
    _Setting("the working directory", _working_directory, _change_directory),
)


#: Whose code has changed settings so far, once per time.
restorations: list[str] = []


@contextlib.contextmanager
def settings_kept(who: str) -> Iterator[None]:
    """Restore the settings of the process after a user's code, and warn once of what it changed.

    Kept are gradient and inference mode, default dtype and device, torch's other modes, number of threads, a seed,
    deterministic and precision flags, what chooses kernels, autocast, the current CUDA device, NumPy's error handling
    and the working directory.

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
