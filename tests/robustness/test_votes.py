"""A run whose reward is a person: it waits, is stopped, resumes without asking again, and is replayed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from algorithms.checkpoints.file import read_checkpoint
from benchmarks.__main__ import main
from benchmarks.runs.run import read_log, read_run
from diffusion_gym.rewards.voting import page
from tests.builders.voter import Voter

TRAIN = ["train", "d3po", "--model", "exact-mixture", "--policy.trainable", "full", "--threads", "1"]
TRAIN += ["--images-per-iteration", "8", "--images-per-prompt", "4", "--num-envs", "4", "--num-inference-steps", "3"]
TRAIN += ["--reward-queries", "16", "--evaluation.images", "2"]
VOTES = ["--reward", "votes?evaluate=exact-linear"]


def favourite(asked: dict[str, Any]) -> dict[str, Any]:
    return {"best": asked["number"] % asked["pictures"]}


@pytest.fixture
def voter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Voter]:
    """Someone who hears what the terminal says, and votes."""
    with Voter(favourite) as voting:
        monkeypatch.setattr(page, "announce", voting.hear)
        yield voting


def weights(folder: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in read_checkpoint(folder / "checkpoint.zip").tensors.items()}


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to this process")
@pytest.mark.parametrize("more", [[], ["--rewards-beside-sampling"]])
def test_a_run_waits_stops_resumes_and_is_replayed(
    more: list[str], voter: Voter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [*TRAIN, *more]

    def stop(asked: dict[str, Any]) -> dict[str, Any] | None:
        if len(voter.asked) < 4:
            return favourite(asked)
        os.kill(os.getpid(), signal.SIGTERM)
        return None

    voter.decide = stop
    assert main([*train, *VOTES, "--folder", str(tmp_path / "run")]) == 143
    assert "stopped; the checkpoint is" in capsys.readouterr().out
    assert voter.said[1] == f"votes: 1 question waits at {voter.address}"
    assert [(asked["mode"], asked["pictures"]) for asked in voter.asked] == [("best", 4)] * 4
    kept = (tmp_path / "run" / "votes.jsonl").read_text().splitlines()
    assert len(kept) == 3

    voter.decide = favourite
    assert main([*train, *VOTES, "--folder", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "votes.jsonl").read_text().splitlines()
    assert lines[:3] == kept
    assert len(lines) == 4
    rewards = [json.loads(line)["rewards"] for line in lines]
    assert all(sorted(group) == [0, 0, 0, 1] for group in rewards)
    assert [line["rollout/ep_rew_mean"] for line in read_log(tmp_path / "run") if "rollout/ep_rew_mean" in line] == [
        0.25
    ] * 2

    heard = len(voter.said)
    replay = f"votes?evaluate=exact-linear&replay={tmp_path / 'run' / 'votes.jsonl'}"
    assert main([*train, "--reward", replay, "--folder", str(tmp_path / "again")]) == 0
    assert len(voter.said) == heard
    assert weights(tmp_path / "again") == weights(tmp_path / "run")
    evaluated = [[line.rewards for line in read_run(tmp_path / name).evaluations] for name in ("run", "again")]
    assert evaluated[0] == evaluated[1]


def test_evaluations_need_a_reward_of_their_own(
    voter: Voter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--reward", "votes", "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: votes asks nobody about the images of evaluations; name the")
    assert main([*TRAIN, *VOTES, "--metrics", "votes", "--folder", str(tmp_path)]) == 2
    assert "votes asks nobody about the images of evaluations" in capsys.readouterr().err
    assert main([*TRAIN, "--reward", "votes", "--evaluation.images", "0", "--folder", str(tmp_path)]) == 0
    assert len(voter.asked) == 4
