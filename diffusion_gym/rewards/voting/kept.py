"""The file of votes: a line of JSON per answered question."""

import json
import math
import os
import time
from pathlib import Path

from diffusion_gym.jsonlines import append_line, read_lines
from diffusion_gym.rewards.voting.question import Key, Question, metadata_text


class KeptVotes:
    """Rewards by question, read from a file of votes, to which new ones are added."""

    def __init__(self, path: Path | None, must_exist: bool = False) -> None:
        """Read the file; None keeps votes in memory alone.

        Raises:
            ValueError: a damaged file, a folder that is not there, or with ``must_exist`` a file that is not there.
        """
        self.path = path
        self._rewards: dict[Key, list[float]] = {}
        if path is None:
            return
        if must_exist and not path.is_file():
            raise ValueError(f"there is no file of votes {str(path)!r}; expected a run's votes.jsonl.")
        if not path.parent.is_dir():
            raise ValueError(
                f"there is no folder {str(path.parent)!r} to keep votes in; make it, or name another file."
            )
        for line in read_lines(path, "rewards"):
            try:
                key = line["prompt"], metadata_text(line["metadata"]), tuple(line["pictures"])
                rewards = [float(reward) for reward in line["rewards"]]
                if len(rewards) != len(key[2]) or not all(map(math.isfinite, rewards)):
                    raise ValueError(f"{rewards} for {len(key[2])} pictures")
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{str(path)!r} is not a file of votes ({error!r}); expected lines with prompt, metadata, pictures "
                    "and as many rewards, as a run writes them to votes.jsonl."
                ) from error
            self._rewards[key] = rewards

    def find(self, question: Question) -> list[float] | None:
        """Return the rewards that a question's answer gave, or None where it was not answered."""
        return self._rewards.get(question.key)

    def add(self, question: Question, rewards: list[float]) -> None:
        """Keep an answer, at once also in the file."""
        self._rewards[question.key] = rewards
        if self.path is None:
            return
        _drop_torn_line(self.path)
        line = {
            "prompt": question.prompt,
            "metadata": json.loads(metadata_text(question.metadata)),
            "pictures": question.digests,
            "mode": question.mode,
            "rewards": rewards,
            "time": round(time.time(), 3),
        }
        append_line(self.path, line)


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process wrote of its last line, or the next line would be damaged by it."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
