"""Which chunk size is fastest: what is tried, when it is said, and that trying changes nothing."""

from pathlib import Path

import gymnasium
import pytest
import torch

import benchmarks.runs.chunk_sizes
import diffusion_gym
from algorithms import DDPO
from benchmarks.__main__ import main
from benchmarks.runs.chunk_sizes import advice, largest_useful, sizes_beside, time_chunks
from benchmarks.runs.clock import Seconds
from benchmarks.runs.memory import estimate_memory

MANY = 10**9


@pytest.fixture
def algorithm(tiny_sd: str) -> DDPO:
    env = gymnasium.make(diffusion_gym.ENV_ID, model=tiny_sd, num_inference_steps=2)
    return DDPO(env, images_per_iteration=16, num_envs=8, updates_per_iteration=2, chunk_size=4, guidance_scale=1.0)


def test_half_and_twice_the_size_are_tried_where_chunks_can_be_filled() -> None:
    assert sizes_beside(16, 64) == [8, 16, 32]
    assert sizes_beside(16, 64, 4) == [4, 8, 16, 32, 64]
    assert sizes_beside(16, 16) == [8, 16]
    assert sizes_beside(16, 24) == [8, 16, 24]
    assert sizes_beside(320, 32) == [32, 160, 320]
    assert sizes_beside(1, 1) == [1]


def test_no_more_rows_than_an_update_or_the_environments_have(algorithm: DDPO) -> None:
    assert largest_useful(algorithm) == 8


def test_only_a_tenth_on_clock_and_processor_is_worth_a_line() -> None:
    assert advice({}, 16) is None
    assert advice({8: Seconds(1.0, 1.0), 16: Seconds(1.09, 1.09), 32: Seconds(1.2, 1.2)}, 16) is None
    assert advice({8: Seconds(1.0, 1.0), 16: Seconds(1.11, 1.11)}, 16) is not None
    said = advice({8: Seconds(1.0, 0.003), 16: Seconds(0.003, 0.003), 32: Seconds(0.002, 0.001)}, 16)
    assert said is not None
    assert said.startswith("chunks of 32 rows are 50% faster here than chunks of 16")
    assert "2 ms, not 3" in said
    assert "--policy.chunk-size 32" in said


def test_trying_changes_nothing(algorithm: DDPO) -> None:
    before = {name: value.detach().clone() for name, value in algorithm.policy.named_parameters()}
    state = torch.get_rng_state()
    seconds = time_chunks(algorithm, estimate_memory(algorithm), MANY)
    assert list(seconds) == [2, 4, 8]
    assert min(value for one in seconds.values() for value in (one.wall, one.cpu)) > 0
    assert all(torch.equal(value, before[name]) for name, value in algorithm.policy.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert algorithm.policy.chunk_size == 4
    assert all(parameter.grad is None for parameter in algorithm.policy.parameters())


def test_a_short_run_tries_nothing(algorithm: DDPO, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes take (2 + 4 + 8) x 3 rows, and at most one row in 50."""
    monkeypatch.setattr(benchmarks.runs.chunk_sizes, "_pass", lambda policy, size: Seconds(1.0, 1.0))
    estimate = estimate_memory(algorithm)
    assert time_chunks(algorithm, estimate, 14 * 3 * 50 - 1) == {}
    assert list(time_chunks(algorithm, estimate, 14 * 3 * 50)) == [2, 4, 8]


def test_a_size_without_memory_is_left_out(algorithm: DDPO, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = estimate_memory(algorithm)

    def fail(policy: object, size: int) -> Seconds:
        if size == 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return Seconds(1.0, 1.0)

    monkeypatch.setattr(benchmarks.runs.chunk_sizes, "_pass", fail)
    assert list(time_chunks(algorithm, estimate, MANY)) == [2, 4]
    monkeypatch.setattr(benchmarks.runs.chunk_sizes, "_pass", lambda policy, size: Seconds(1.0, 1.0))
    monkeypatch.setattr(benchmarks.runs.chunk_sizes, "free_bytes", lambda device: estimate.total)
    assert list(time_chunks(algorithm, estimate, MANY)) == [2, 4], "is not even tried"


def test_train_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmarks.runs.chunk_sizes, "time_chunks", lambda *_: {16: Seconds(0.002, 0.002), 64: Seconds(0.004, 0.005)}
    )
    run = ["train", "ddpo-is", "--model", "exact-gaussian", "--reward", "exact-linear", "--reward-queries", "64"]
    assert main([*run, "--threads", "1", "--folder", str(tmp_path / "run")]) == 0
    assert "chunks of 16 rows are 100% faster here than chunks of 64" in capsys.readouterr().out
