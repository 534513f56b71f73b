"""Several processes (ranks) that train one policy: what they exchange, and what happens when one fails.

Started by ``accelerate launch`` or ``torchrun``, each rank samples its share of an iteration's images and trains on
them. Rewards are gathered, so that every rank computes the same advantages, and gradients are summed once per update,
so that every rank steps to the same weights. With FSDP each rank keeps its part of them (see ``sharding.py``).

Ranks exchange failures once per rollout, and when the first writes. A rank that fails in an update raises its error and
exits, and the launcher ends the others.
"""

import contextlib
import functools
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from algorithms.memory import is_out_of_memory
from algorithms.parallel.launch import check_launch_options, launched_size, launched_with
from algorithms.parallel.sharding import shard
from diffusion_gym.rewards import RewardError

T = TypeVar("T")
#: Environment variable: seconds that ranks wait for one another, the slowest reward included, before the run ends.
TIMEOUT = "DIFFUSION_GYM_RANK_TIMEOUT"
_DEFAULT_TIMEOUT = 1800.0
_GRACE = timedelta(seconds=5)  # for a rank that lives to say so, once another was lost


class RankError(Exception):
    """Another rank failed, died or did not answer; the message names it."""


class Ranks:
    """This process among those that train together; alone, every exchange returns what it was given.

    Attributes:
        rank: from 0.
        size: number of ranks.
        sharded: whether each holds a part of the weights (FSDP); then every forward pass is a collective.
    """

    def __init__(self, state: Any = None, timeout: float = _DEFAULT_TIMEOUT, sharded: bool = False) -> None:
        """Join the other ranks. Collective.

        Args:
            state: an ``accelerate.PartialState``; None is one process alone.
            timeout: seconds.
            sharded: shard weights over the ranks.
        """
        self._state, self._timeout, self.sharded = state, timeout, sharded
        self.rank = 0 if state is None else state.process_index
        self.size = 1 if state is None else state.num_processes
        if self.size > 1:
            # A group of its own, so that this never mixes with gradients; gloo, because it is on the CPU.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0

    def device(self, asked: torch.device | str | None) -> torch.device | str | None:
        """Return the device that was asked for; "auto" is the ranks' own where there are several."""
        return self._state.device.type if str(asked) == "auto" and self.size > 1 else asked

    def share(self, module: nn.Module) -> None:
        """Give every rank the first one's trained weights, or with FSDP its part of all weights. Collective.

        Raises:
            ValueError: the weights are on a device that the ranks do not exchange gradients on, or cannot be sharded.
        """
        found = next(module.parameters()).device.type
        alone = "cpu" if launched_with("CPU") else found
        expected = alone if self.size == 1 else self._state.device.type
        if found != expected:
            raise ValueError(
                f"the ranks were launched for {expected!r}, but the model is on {found!r}. Give the environment "
                f"device={expected!r}, or, to train on CPUs beside GPUs, hide those with CUDA_VISIBLE_DEVICES=''."
            )
        if self.sharded:
            shard(module, found, self.size)
        elif self.size > 1:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    dist.broadcast(parameter.data, 0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up each parameter's gradient over the ranks, in place. Collective.

        A rank without a gradient adds 0; a parameter without one on any rank keeps none. The backward pass has
        summed the gradients of sharded weights already.
        """
        if self.size == 1 or self.sharded:
            return
        found = self.gather(torch.tensor([[parameter.grad is not None for parameter in parameters]])).any(0)
        with self.ending_together():
            for parameter, anywhere in zip(parameters, found.tolist(), strict=True):
                if anywhere:
                    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = gradient.contiguous()
                    dist.all_reduce(parameter.grad)

    def call(self, work: Callable[[], T]) -> T:
        """Return what this rank's work returns, once every rank has done its own. Collective.

        With sharded weights a failure other than a reward's is raised at once, because the others wait in a forward
        pass; the launcher ends them.

        Raises:
            Exception: the work's own error, where it failed here.
            RewardError: a reward failed on the rank that the message names.
            RankError: another failure of the rank that the message names, or it died, or did not answer in time.
        """
        if self.size == 1:
            return work()
        error = None
        try:
            with self.ending_together() if self.sharded else contextlib.nullcontext():
                result = work()
        except RankError:
            raise
        except Exception as raised:
            if self.sharded and not isinstance(raised, RewardError):
                raise
            error = raised
        if not self.all(error is None):
            raise self._failure(error)
        return result

    def all(self, value: bool) -> bool:
        """Return whether the value is true on every rank. Collective."""
        return value if self.size == 1 else bool(self.gather(torch.tensor([value])).all())

    def first(self, work: Callable[[], object]) -> None:
        """Let rank 0 work while the others wait; its failure is raised on all. Collective."""
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
        """Turn a broken connection into an error that names the rank that was lost.

        Raises:
            RankError: another rank failed, died or did not answer.
        """
        try:
            yield
        except RuntimeError as error:
            raised_by_torch = type(error) is RuntimeError or isinstance(error, dist.DistError)
            if self.size == 1 or not raised_by_torch or is_out_of_memory(error):
                raise
            raise RankError(self._lost(error)) from error

    def _failure(self, error: Exception | None) -> Exception:
        """Exchange what failed, and return the error that all ranks raise: that of the first rank that failed."""
        mine = None if error is None else (isinstance(error, RewardError), f"{type(error).__name__}: {error}")
        failures = enumerate(self.gather_objects(mine))
        rank, (of_reward, text) = next((rank, failure) for rank, failure in failures if failure is not None)
        if rank == self.rank:
            assert error is not None
            return error
        return (RewardError if of_reward else RankError)(f"rank {rank} of {self.size} failed: {text}")

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


@functools.cache
def current_ranks() -> Ranks:
    """Return this process's ranks, set up through Accelerate where a launcher started several; the same ones each time.

    Raises:
        ValueError: an option of ``accelerate launch`` that would not be followed, or a timeout that is no number.
    """
    check_launch_options()
    if launched_size() == 1:
        return ALONE
    timeout = os.environ.get(TIMEOUT, str(_DEFAULT_TIMEOUT))
    if not timeout.replace(".", "", 1).isdigit() or float(timeout) <= 0:
        raise ValueError(f"{TIMEOUT} must be a positive number of seconds, got {timeout!r}.")
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=float(timeout)))
    return Ranks(state, float(timeout), sharded=launched_with("FSDP"))


def _line(error: Exception) -> str:
    return textwrap.shorten(str(error).partition("\n")[0], 120, placeholder=" ...")
