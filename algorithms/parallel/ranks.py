"""Several processes (ranks) that train one policy: who is who, what they exchange, and what ends them together.

Started by ``accelerate launch`` or ``torchrun``, each rank samples its share of an iteration's images and trains on
them; rewards are gathered, so that every rank computes the same advantages, and gradients are summed, so that every
rank steps to the same weights: all of them (DDP), or its part (FSDP).
"""

import contextlib
import functools
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from algorithms.parallel.sharding import shard
from algorithms.parallel.within_memory import is_out_of_memory
from diffusion_gym.rewards import RewardError

T = TypeVar("T")
#: Environment variable: seconds that ranks wait for one another, the slowest reward included, before the run ends.
TIMEOUT = "DIFFUSION_GYM_RANK_TIMEOUT"
_DEFAULT_TIMEOUT = 1800.0
_DATA_PARALLEL = "launch with --multi_gpu, in which every rank holds all weights, or with --use_fsdp"
_OFF = ("false", "no", "0")
#: What ``accelerate launch`` or its configuration asks for: variable -> option, values that mean what is done here, and
#: what to do about others.
_LAUNCH_OPTIONS = {
    "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", _OFF, _DATA_PARALLEL),
    "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", _OFF, _DATA_PARALLEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("--use_parallelism_config", _OFF, _DATA_PARALLEL),
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": ("SageMaker's distributed type", _OFF, _DATA_PARALLEL),
    "XLA_USE_BF16": ("--tpu, with XLA_USE_BF16", _OFF, "train on GPUs or CPUs, for TPUs are not supported"),
    "XLA_DOWNCAST_BF16": ("--downcast_bf16", _OFF, "train on GPUs or CPUs, for TPUs are not supported"),
    "ACCELERATE_DYNAMO_BACKEND": (
        "--dynamo_backend",
        ("no",),
        "leave it out, for compiled networks are not supported",
    ),
    "ACCELERATE_MIXED_PRECISION": (
        "--mixed_precision",
        ("no",),
        "give --policy.autocast bfloat16 or float16 to train in its place, so that sampling and scoring share it",
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "--gradient_accumulation_steps",
        ("1",),
        "set an update's images with --images-per-iteration and --updates-per-iteration, and the rows that lie in "
        "memory at a time with --policy.chunk-size; their gradients are added up",
    ),
}
_FOLLOWED = (
    "leave it out: here FSDP shards weights, gradients and moments by the networks' own blocks, gathers weights anew "
    "for the backward pass, and offloads nothing; activations are computed again with --policy.gradient-checkpointing"
)
#: The same of what follows ``--use_fsdp``.
_FSDP_OPTIONS = {
    name: (f"--{name.lower()}", followed, _FOLLOWED)
    for name, followed in {
        "FSDP_SHARDING_STRATEGY": ("full_shard", "1"),
        "FSDP_RESHARD_AFTER_FORWARD": ("true", "full_shard"),
        "FSDP_OFFLOAD_PARAMS": _OFF,
        "FSDP_ACTIVATION_CHECKPOINTING": _OFF,
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": _OFF,
        "FSDP_AUTO_WRAP_POLICY": ("transformer_based_wrap",),
        "FSDP_TRANSFORMER_CLS_TO_WRAP": ("",),
        "FSDP_IGNORED_MODULES": ("",),
    }.items()
}
_GRACE = timedelta(seconds=5)  # for a rank that lives to say so, once another was lost


class RankError(Exception):
    """Another rank failed, died or did not answer; the message names it."""


class RanksOutOfMemory(RuntimeError):  # noqa: N818 - named after torch's own
    """Memory ran out on a rank, and every rank was told so before anything else was exchanged."""


class Ranks:
    """This process among those that train together; alone, every exchange returns what it was given.

    Attributes:
        rank: from 0.
        size: number of ranks.
        sharded: whether each holds a part of the weights (FSDP); then every forward pass is one of all ranks.
    """

    def __init__(self, accelerator: Any = None, timeout: float = _DEFAULT_TIMEOUT, sharded: bool = False) -> None:
        """Join the other ranks; every one must do so.

        Args:
            accelerator: an ``accelerate.Accelerator`` whose process group has been set up, or a ``PartialState``, which
                is enough to shard weights; None is one process alone.
            timeout: seconds.
            sharded: shard weights over the ranks.
        """
        self._accelerator, self._timeout, self.sharded = accelerator, timeout, sharded
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.size = 1 if accelerator is None else accelerator.num_processes
        if self.size > 1:
            # A group of its own, so that what is exchanged here never meets a gradient; gloo, for it is all on the CPU.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0

    @property
    def votes(self) -> bool:
        """Whether ranks can agree, before an update's gradients are exchanged, that all of them got so far (DDP)."""
        return self.size > 1 and not self.sharded

    def device(self, asked: torch.device | str | None) -> torch.device | str | None:
        """Return the device that was asked for, in the place of "auto" that of the ranks where there are several."""
        return self._accelerator.device.type if str(asked) == "auto" and self.size > 1 else asked

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module as one whose backward pass averages gradients over the ranks (DDP, or FSDP in place).

        Raises:
            ValueError: its weights lie on a device that the ranks do not exchange gradients on, or cannot be sharded.
        """
        found = next(module.parameters()).device.type
        alone = "cpu" if _launched_with("CPU") else found
        expected = alone if self.size == 1 else self._accelerator.device.type
        if found != expected:
            raise ValueError(
                f"the ranks were launched for {expected!r}, but the model is on {found!r}. Give the environment "
                f"device={expected!r}, or, to train on CPUs beside GPUs, hide those with CUDA_VISIBLE_DEVICES=''."
            )
        if self.size == 1:
            return module
        if self.sharded:
            shard(module, found, self.size)
            return module
        with warnings.catch_warnings():  # newer torch has another name for broadcast_buffers, which older ones lack
            warnings.simplefilter("ignore", FutureWarning)
            return self._accelerator.prepare_model(module)

    def call(self, work: Callable[[], T]) -> T:
        """Return what this rank's work returns, once every rank has done its own. Collective: call on every rank.

        Raises:
            Exception: the work's own, where it failed here.
            RewardError, RanksOutOfMemory: a reward failed, or memory ran out, on the rank that is named.
            RankError: another failure of the rank that is named, or it died, or did not answer in time; or memory ran
                out here, while the others wait for this rank's part of the weights.
        """
        if self.size == 1:
            return work()
        error = None
        try:
            result = work()
        except RankError:
            raise
        except Exception as raised:
            if self.sharded and is_out_of_memory(raised):
                raise self._out_of_memory(raised) from raised
            error = raised
        if not self.all(error is None):
            raise self._failure(error)
        return result

    def all(self, value: bool) -> bool:
        """Whether it is so on every rank."""
        return value if self.size == 1 else bool(self.gather(torch.tensor([value])).all())

    def first(self, work: Callable[[], object]) -> None:
        """Let rank 0 work while the others wait; its failure ends them all."""
        self.call(lambda: work() if self.is_first else None)

    def gather(self, values: Tensor) -> Tensor:
        """Return the tensors (m, ...) of all ranks, (size * m, ...), in the order of ranks; all of one shape."""
        if self.size == 1:
            return values
        mine = values.detach().cpu().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with self.ending_together():
            dist.all_gather(parts, mine, group=self._group)
        return torch.cat(parts).to(values.device)

    def gather_objects(self, value: T) -> list[T]:
        """Return each rank's value; it must be what pickle takes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.ending_together():
            dist.all_gather_object(values, value, group=self._group)
        return values

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Turn a connection that broke, or memory that ran out here alone, into an error that names the rank.

        Raises:
            RankError: as said; the others end too, because this one answers no more.
        """
        try:
            yield
        except RanksOutOfMemory:
            raise
        except RuntimeError as error:
            raised_by_torch = type(error) is RuntimeError or isinstance(error, dist.DistError)
            if self.size > 1 and is_out_of_memory(error):
                raise self._out_of_memory(error) from error
            if self.size == 1 or not raised_by_torch:
                raise
            raise RankError(self._lost(error)) from error

    def _out_of_memory(self, error: Exception) -> RankError:
        """Return the error for memory that ran out in the middle of what all ranks do together."""
        return RankError(
            f"rank {self.rank} of {self.size} ran out of memory while the others waited for it ({_line(error)}), so "
            "this could not be made again in smaller chunks: set a smaller --policy.chunk-size."
        )

    def _failure(self, error: Exception | None) -> Exception:
        """Exchange what failed, and return the one error that all ranks raise: the first that is not of memory."""
        told = self.gather_objects(("", "") if error is None else (_kind(error), f"{type(error).__name__}: {error}"))
        _, rank, kind, text = min(
            (kind == "memory", rank, kind, text) for rank, (kind, text) in enumerate(told) if kind
        )
        if kind == "memory":  # every rank goes on in smaller chunks
            return RanksOutOfMemory(f"out of memory on rank {rank} of {self.size} ({text})")
        if rank == self.rank:
            assert error is not None
            return error
        cls = RewardError if kind == "reward" else RankError
        return cls(f"rank {rank} of {self.size} failed: {text}")

    def _lost(self, error: RuntimeError) -> str:
        """Say who is missing. Those who live tell each other through the launcher's store, which needs no peers."""
        store = dist.PrefixStore("lives", dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
        missing = []
        try:
            store.set(str(self.rank), "1")
            for rank in range(self.size):
                try:
                    store.wait([str(rank)], _GRACE)
                except dist.DistStoreError:
                    missing.append(rank)
        except dist.DistNetworkError:
            missing = [0]  # it holds the store where ranks were started by hand
        who = " and ".join(f"rank {rank}" for rank in missing) or "a rank"
        return (
            f"{who} of {self.size} died or did not answer within {self._timeout:g} s ({_line(error)}). The last "
            f"checkpoint stays; the same command resumes there. Slow rewards need a larger {TIMEOUT}."
        )


#: One process by itself.
ALONE = Ranks()


def launched_size() -> int:
    """Return how many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@functools.cache
def current_ranks() -> Ranks:
    """Return this process's ranks, set up through Accelerate where a launcher started several; the same ones each time.

    Raises:
        ValueError: an option of ``accelerate launch`` that would not be followed, or a timeout that is no number.
    """
    _check_launch_options(_LAUNCH_OPTIONS)
    if _launched_with("FSDP"):
        _check_launch_options(_FSDP_OPTIONS)
    if launched_size() == 1:
        return ALONE
    timeout = os.environ.get(TIMEOUT, str(_DEFAULT_TIMEOUT))
    if not timeout.replace(".", "", 1).isdigit() or float(timeout) <= 0:
        raise ValueError(f"{TIMEOUT} must be a positive number of seconds, got {timeout!r}.")
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    cpu, wait = not torch.cuda.is_available(), timedelta(seconds=float(timeout))
    if _launched_with("FSDP"):
        # Accelerate would make DDP of it on gloo, without a word.
        return Ranks(PartialState(cpu=cpu, timeout=wait), float(timeout), sharded=True)
    handlers = [
        # No buffer changes in training. Parameters without a gradient: an encoder's pooled head that nothing reads.
        DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True),
        InitProcessGroupKwargs(timeout=wait),
    ]
    # Autocast is the policy's own business: sampling and scoring must share it.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)
    return Ranks(accelerator, float(timeout))


def _launched_with(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1", "yes")


def _check_launch_options(options: Mapping[str, tuple[str, tuple[str, ...], str]]) -> None:
    """Raise ValueError where a launcher was asked for what would not be followed, also of one process alone."""
    for name, (option, followed, instead) in options.items():
        value = os.environ.get(name, "")
        if value and value.lower() not in followed:
            raise ValueError(
                f"accelerate launch, or Accelerate's configuration ({name}), asks for {option} {value}, which would "
                f"not be followed; expected {followed[0] or 'none'}: {instead} (docs/several-gpus.md)."
            )


@contextlib.contextmanager
def synchronising(module: nn.Module, when: bool) -> Iterator[None]:
    """Forward and backward passes inside sum gradients over the ranks, or, with DDP, only add them up here.

    Sharded weights' gradients are always summed, so that no rank ever holds them whole.
    """
    if when or not isinstance(module, DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


def _kind(error: Exception) -> str:
    if is_out_of_memory(error):
        return "memory"
    return "reward" if isinstance(error, RewardError) else "other"


def _line(error: Exception) -> str:
    return textwrap.shorten(str(error).partition("\n")[0], 120, placeholder=" ...")
