"""Out of memory, injected: a probe finds the chunk size before the first iteration; later it is an error to resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import DDPO, RWR, DiffusionAlgorithm, EvaluationConfig, memory
from algorithms.memory import OutOfMemory, fit_chunk_size, is_out_of_memory
from diffusion_gym.rewards import RewardError

ITERATION = 6 * 3
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Scarce:
    """A denoiser that runs out of memory on more than ``rows`` rows, sampling or training, after some passes."""

    def __init__(self, algorithm: DiffusionAlgorithm[Any], rows: int, *, sampling: bool, after: int = 0) -> None:
        self.rows, self.sampling, self.after, self.refused = rows, sampling, after, 0
        algorithm.policy.denoiser.register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        concerned = torch.is_grad_enabled() != self.sampling
        self.after -= concerned
        if concerned and self.after < 0 and len(inputs[0]) > self.rows:
            self.refused += 1
            raise torch.cuda.OutOfMemoryError(MESSAGE)


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe on the CPU as on a GPU."""
    monkeypatch.setattr(memory, "PROBED_DEVICES", ["cpu"])


def trained(algorithm: DiffusionAlgorithm[Any], iterations: int = 2) -> dict[str, torch.Tensor]:
    algorithm.learn(iterations * ITERATION)
    return algorithm.get_parameters()["policy"]


def largest_gap(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("cls", [DDPO, RWR])
@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("sampling", [True, False])
def test_the_run_is_that_of_the_chunk_size_that_fits(
    small_run: Callable, cls: type, trainable: str, sampling: bool
) -> None:
    """Bit for bit: 4 rows do not fit and 2 do; the probe itself leaves weights, gradients, noise and costs alone."""
    kwargs = {"trainable": trainable, "updates_per_iteration": 2} | ({"batch_size": 6} if cls is RWR else {})
    algorithm = small_run(cls, **kwargs)
    scarce = Scarce(algorithm, 2, sampling=sampling)
    with pytest.warns(UserWarning, match=r"out of memory with 4 rows.*continuing with 2"):
        weights = trained(algorithm)
    expected = small_run(cls, **{**kwargs, "chunk_size": 2})
    expected.chunk_size_found = True
    assert largest_gap(weights, trained(expected)) == 0.0
    assert scarce.refused == 1
    assert algorithm.num_timesteps == expected.num_timesteps == 2 * ITERATION
    costs = [{k: v for k, v in a.costs.items() if k != "seconds"} for a in (algorithm, expected)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize(("sampling", "after"), [(True, 3), (False, 3), (False, 8)])
def test_later_it_is_an_error_and_the_checkpoint_resumes_in_smaller_chunks(
    small_run: Callable, tmp_path: Path, sampling: bool, after: int
) -> None:
    algorithm = small_run(trainable="full", evaluation=EvaluationConfig(images=3))
    algorithm.save(tmp_path / "run")
    Scarce(algorithm, 2, sampling=sampling, after=after)
    with pytest.raises(OutOfMemory, match=r"iteration \d with 4 rows per forward pass.*chunk_size=2") as raised:
        trained(algorithm)
    assert raised.value.chunk_size == 4
    resumed = DDPO.load(tmp_path / "run", chunk_size=raised.value.chunk_size // 2)
    Scarce(resumed, 2, sampling=sampling)
    trained(resumed)
    assert resumed.iteration == 2


def test_weights_between_two_iterations_are_saved_with_a_warning(small_run: Callable, tmp_path: Path) -> None:
    algorithm = small_run(trainable="full")
    Scarce(algorithm, 2, sampling=False, after=2)
    with pytest.raises(OutOfMemory):
        trained(algorithm)
    with pytest.warns(UserWarning, match="between two iterations"):
        algorithm.save(tmp_path / "run")
    assert algorithm.num_timesteps == 0


def test_the_size_is_kept_in_the_checkpoint(small_run: Callable, tmp_path: Path) -> None:
    algorithm = small_run(trainable="lora", evaluation=EvaluationConfig(images=3))
    Scarce(algorithm, 1, sampling=True)
    with pytest.warns(UserWarning, match="continuing with 1"):
        algorithm.learn(ITERATION)
    assert algorithm.policy.chunk_size == 1
    algorithm.save(tmp_path / "run")
    assert DDPO.load(tmp_path / "run").policy.chunk_size == 1
    assert DDPO.load(tmp_path / "run", chunk_size=2).policy.chunk_size == 2  # asked for: another machine, perhaps
    assert DDPO.load(tmp_path / "run", chunk_size=4).policy.chunk_size == 4  # also the size that was asked for first


def test_when_one_row_does_not_fit_it_says_what_saves_memory(small_run: Callable) -> None:
    algorithm = small_run(trainable="lora", chunk_size=2)
    Scarce(algorithm, 0, sampling=True)
    with (
        pytest.warns(UserWarning, match="with 1"),
        pytest.raises(MemoryError, match=r"one row per forward pass.*gradient-checkpointing"),
    ):
        algorithm.learn(ITERATION)
    assert algorithm.num_timesteps == 0


def test_what_counts_as_out_of_memory() -> None:
    """CUDA's, MPS's and the CPU's; not an error of another kind, and not a reward's, which halving cannot help."""
    assert is_out_of_memory(torch.cuda.OutOfMemoryError(MESSAGE))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(RewardError("the reward 'mine' failed: CUDA out of memory"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_other_errors_pass_through(small_run: Callable) -> None:
    policy = small_run(trainable="lora").policy

    def work() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fit_chunk_size(policy, work)
    assert policy.chunk_size == 4
