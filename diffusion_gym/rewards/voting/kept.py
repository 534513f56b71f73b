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

    def __init__(self, path: Path | None, replays: bool = False) -> None:
        """Read the file; None keeps votes in memory alone.

        Args:
            path: of the file.
            replays: whether answers are given again whatever they were answers to; else a grade is not taken where the
                best is asked for.

        Raises:
            ValueError: a damaged file, a folder that is not there, or a file to replay that is not there.
        """
        self.path, self._replays = path, replays
        self._rewards: dict[tuple[Key, str], list[float]] = {}
        if path is None:
            return
        if replays and not path.is_file():
            raise ValueError(f"there is no file of votes {str(path)!r}; expected a run's votes.jsonl.")
        if not path.parent.is_dir():
            raise ValueError(
                f"there is no folder {str(path.parent)!r} to keep votes in; make it, or name another file."
            )
        for line in read_lines(path, "rewards"):
            try:
                key: Key = line["prompt"], metadata_text(line["metadata"]), tuple(line["pictures"])
                rewards = [float(reward) for reward in line["rewards"]]
                if len(rewards) != len(key[2]) or not all(map(math.isfinite, rewards)):
                    raise ValueError(f"{rewards} for {len(key[2])} pictures")
                self._rewards[key, self._asked(line["mode"])] = rewards
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{str(path)!r} is not a file of votes ({error!r}); expected lines with prompt, metadata, "
                    "pictures, mode, and as many rewards, as a run writes them to votes.jsonl."
                ) from error

    def find(self, question: Question) -> list[float] | None:
        """Return the rewards that a question's answer gave, or None where it was not answered."""
        return self._rewards.get((question.key, self._asked(question.mode)))

    def add(self, question: Question, rewards: list[float]) -> None:
        """Keep an answer, at once also in the file."""
        self._rewards[question.key, self._asked(question.mode)] = rewards
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

    def _asked(self, mode: str) -> str:
        return "" if self._replays else mode


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process wrote of its last line, or the next line would be damaged by it."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
