"""Out of memory, injected: the chunk is halved, the iteration's update is the same, the first ratios are exactly 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import DDPO, RWR, DiffusionAlgorithm, EvaluationConfig
from algorithms.parallel.within_memory import is_out_of_memory, within_memory
from diffusion_gym.rewards import RewardError

ITERATION = 6 * 3
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Scarce:
    """A denoiser that runs out of memory on more than ``rows`` rows, sampling or training."""

    def __init__(self, algorithm: DiffusionAlgorithm[Any], rows: int, *, sampling: bool, after: int = 0) -> None:
        self.rows, self.sampling, self.after, self.refused = rows, sampling, after, 0
        algorithm.policy.denoiser.register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        concerned = torch.is_grad_enabled() != self.sampling
        self.after -= concerned
        if concerned and self.after < 0 and len(inputs[0]) > self.rows:
            self.refused += 1
            raise torch.cuda.OutOfMemoryError(MESSAGE)


def trained(algorithm: DiffusionAlgorithm[Any], iterations: int = 2) -> dict[str, torch.Tensor]:
    algorithm.learn(iterations * ITERATION)
    return algorithm.get_parameters()["policy"]


def largest_gap(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("cls", [DDPO, RWR])
@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_in_the_first_sampling_it_is_the_run_of_that_chunk_size(small_run: Callable, cls: type, trainable: str) -> None:
    """To the bit: 4 rows do not fit and 2 do, so the rollout begins again; costs and steps are not counted twice."""
    kwargs = {"trainable": trainable, "updates_per_iteration": 2} | ({"batch_size": 6} if cls is RWR else {})
    algorithm = small_run(cls, **kwargs)
    scarce = Scarce(algorithm, 2, sampling=True)
    with pytest.warns(UserWarning, match=r"out of memory with 4 rows.*continuing with 2"):
        weights = trained(algorithm)
    expected = small_run(cls, **{**kwargs, "chunk_size": 2})
    assert largest_gap(weights, trained(expected)) == 0.0
    assert scarce.refused == 1
    assert algorithm.num_timesteps == expected.num_timesteps == 2 * ITERATION
    costs = [{k: v for k, v in a.costs.items() if k != "seconds"} for a in (algorithm, expected)]
    assert costs[0] == costs[1]


class Watched(DDPO):
    """DDPO that keeps the largest |log-ratio| of each update that ended."""

    def update(self, rollout: Any) -> dict[str, float]:
        metrics = super().update(rollout)
        self.seen = [*getattr(self, "seen", []), metrics["train/log_ratio_abs_max"]]
        return metrics


@pytest.mark.parametrize("after", [0, 2, 4])
@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_in_the_update_everything_is_taken_back(small_run: Callable, after: int, autocast: str) -> None:
    """Memory runs out in the first chunk, inside an accumulated gradient, and after the first of two gradient steps.

    An update twice as large or begun from other weights would move weights by Adam's whole step, 1e-4; the same one in
    other chunks moves them by rounding. One update an iteration, so that the ratio is 1 in all of it.
    """
    runs = []
    for scarce in (True, False):
        algorithm = small_run(
            Watched, trainable="full", autocast=autocast, learning_rate=1e-4, updates_per_iteration=1 + after // 4
        )
        if scarce:
            Scarce(algorithm, 2, sampling=False, after=after)
            with pytest.warns(UserWarning, match="continuing with 2"):
                algorithm.learn(ITERATION)
        else:
            algorithm.learn(ITERATION)
        runs.append(algorithm)
    assert runs[0].policy.chunk_size == 2
    assert runs[0]._n_updates == runs[1]._n_updates
    assert runs[0].costs["forward_equivalents"] == runs[1].costs["forward_equivalents"]
    if after < 4:
        assert runs[0].seen == [0.0]
    if autocast == "none":
        start = small_run(Watched, trainable="full").get_parameters()["policy"]
        found, expected = (run.get_parameters()["policy"] for run in runs)
        moved = largest_gap(expected, start)
        gaps = [float((value - expected[name]).abs().mean()) for name, value in found.items()]
        assert moved > 0.9e-4
        # Adam's first step has the gradient's sign alone, so that a gradient of about 0 may go the other way.
        assert max(gaps) < 0.05 * moved
    assert runs[0].statistics.state_dict() == runs[1].statistics.state_dict()


def test_both_updates_of_rwr(small_run: Callable) -> None:
    """Its times and noise are drawn inside the update: drawn again, they are the same."""
    kwargs: dict[str, Any] = {"trainable": "full", "batch_size": 12, "learning_rate": 1e-4}
    algorithm, expected = small_run(RWR, **kwargs), small_run(RWR, **kwargs)
    Scarce(algorithm, 2, sampling=False, after=1)
    with pytest.warns(UserWarning, match="continuing with 2"):
        weights = trained(algorithm, 1)
    wanted = trained(expected, 1)
    gaps = [float((weights[name] - wanted[name]).abs().mean()) for name in wanted]
    assert max(gaps) < 0.05e-4


def test_evaluations_fit_too_and_the_size_is_kept_in_the_checkpoint(
    small_run: Callable, tmp_path: Path, tiny_sd: str
) -> None:
    algorithm = small_run(trainable="lora", evaluation=EvaluationConfig(images=3))
    Scarce(algorithm, 1, sampling=True)
    with pytest.warns(UserWarning, match="continuing with 1"):
        algorithm.learn(ITERATION)
    assert algorithm.policy.chunk_size == 1
    assert algorithm.logger.name_to_value.get("train/chunk_size", 1) == 1
    algorithm.save(tmp_path / "run")
    assert DDPO.load(tmp_path / "run").policy.chunk_size == 1
    assert DDPO.load(tmp_path / "run", chunk_size=2).policy.chunk_size == 2  # asked for: another machine, perhaps


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
        within_memory(policy, work)
    assert policy.chunk_size == 4
