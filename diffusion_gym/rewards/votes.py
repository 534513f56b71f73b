"""A person as the reward: a page on this machine shows a prompt's pictures, and takes the best or a grade for each."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from diffusion_gym.prompt_records import Prompt
from diffusion_gym.rewards.attended import TrainingRun
from diffusion_gym.rewards.base import RewardError, RewardFunction, evaluate_reward
from diffusion_gym.rewards.metadata import check_metadata
from diffusion_gym.rewards.spec import parse_reward
from diffusion_gym.rewards.voting import page
from diffusion_gym.rewards.voting.kept import KeptVotes
from diffusion_gym.rewards.voting.question import Mode, Question, metadata_text

_FILE = "votes.jsonl"
_LOOPBACK = ("127.", "localhost")
_Mode = Literal["auto", "best", "grade"]


@dataclass(eq=False, kw_only=True)
class Votes:
    """A person's votes: 1 for the best picture of a prompt and 0 for the others, or a grade from 0 to 1 for each.

    Attributes:
        mode: "best", "grade", or "auto": the best where each picture has another of its prompt beside it, else grades.
        grades: the highest grade, 2 to 9; grade g gives ``(g - 1) / (grades - 1)``.
        group: pictures of one prompt that are shown together, at most; None is the run's images_per_prompt, and outside
            of ``train`` all pictures of a prompt in one call.
        host: address to listen on; 127.0.0.1 is reached from this machine alone.
        port: 0 takes a free one.
        file: where votes are kept; what is in it is not asked again. None is votes.jsonl in the run's folder, and
            outside of ``train`` no file.
        replay: a file of votes that are given again; nobody is asked.
        evaluate: the reward, as text, of evaluations' images, about which nobody is asked.
    """

    mode: _Mode = "auto"
    grades: int = 5
    group: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    file: str | None = None
    replay: str | None = None
    evaluate: str | None = None
    name: ClassVar[str] = "votes"

    def __post_init__(self) -> None:
        """Read the files; raises ValueError for settings that do not fit, or a file that is damaged or missing."""
        if self.mode not in get_args(_Mode):
            raise ValueError(f"mode must be one of {list(get_args(_Mode))}, got {self.mode!r}.")
        if not 2 <= self.grades <= 9:
            raise ValueError(f"grades must lie in 2 to 9, the keys that give them, got {self.grades}.")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}.")
        if self.file is not None and self.replay is not None:
            raise ValueError("votes takes a file to keep votes in, or one to replay, not both.")
        given = self.replay or self.file
        self._kept = KeptVotes(None if given is None else Path(given).resolve(), replays=self.replay is not None)
        self._stand_in = None if self.evaluate is None else _stand_in(self.evaluate)
        self._evaluating = False
        self._size = self.group
        self._page: page.VotingPage | None = None
        self._should_stop: Callable[[], bool] = lambda: False

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Tensor:
        """Return (n,), float32, once all pictures were voted on.

        Raises:
            RewardError: a replay without these pictures, or a picture alone where the best of several is asked for.
            Interrupted: the run is to stop.
        """
        if self._evaluating and self._stand_in is not None:
            return evaluate_reward(self._stand_in, images, prompts, metadata)
        rewards = torch.zeros(len(images))
        questions = self._questions(images.cpu(), prompts, metadata or [{} for _ in prompts])
        self._answer([question for _, question in questions])
        for rows, question in questions:
            rewards[rows] = torch.tensor(self._kept.find(question))
        return rewards.to(images.device)

    def check_metadata(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raise ValueError for a prompt without the metadata that the reward of evaluations needs."""
        if self._stand_in is not None:
            check_metadata(self._stand_in, [Prompt(prompt, metadata=metadata)])

    @property
    def address(self) -> str:
        """The page's address; the page is opened if it is not yet. Raises ValueError where the port is taken."""
        return self._opened().address

    def close(self) -> None:
        """Close the page; the next question opens another."""
        if self._page is not None:
            self._page.close()
            self._page = None

    # -- of a run -----------------------------------------------------------------------------------------------------

    def begin_run(self, run: TrainingRun) -> None:
        """Keep votes in the run's folder, and open the page, before anything is sampled.

        Raises:
            ValueError: several processes, groups that are scored in parts, evaluations without a reward, or a port that
                is taken.
        """
        if run.processes > 1:
            raise ValueError(f"votes asks from one process, got {run.processes}; start train without a launcher.")
        if run.num_envs % run.images_per_prompt:
            raise ValueError(
                f"votes shows the pictures of a prompt together, so num_envs ({run.num_envs}) must be a multiple of "
                f"images_per_prompt ({run.images_per_prompt})."
            )
        if run.evaluates:
            self._check_evaluate()
        self._size = self.group or run.images_per_prompt
        self._should_stop = run.should_stop
        if self.replay is not None:
            return
        if self.file is None:
            self._kept = KeptVotes(run.folder.resolve() / _FILE)
        self._opened()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """In this block the reward :attr:`evaluate` scores; raises ValueError where there is none."""
        self._check_evaluate()
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = False

    def _check_evaluate(self) -> None:
        if self._stand_in is None:
            raise ValueError(
                "votes asks nobody about the images of evaluations; name the reward that scores them, for example "
                "votes?evaluate=aesthetic, or leave evaluations out: --evaluation.images 0."
            )

    # -- asking -------------------------------------------------------------------------------------------------------

    def _questions(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[tuple[list[int], Question]]:
        """Return rows of images, those of one prompt together, and the question about each."""
        by_prompt: dict[tuple[str, str], list[int]] = {}
        for row, (prompt, more) in enumerate(zip(prompts, metadata, strict=True)):
            by_prompt.setdefault((prompt, metadata_text(more)), []).append(row)
        size = self._size or len(images)
        groups = [rows[k : k + size] for rows in by_prompt.values() for k in range(0, len(rows), size)]
        alone = next((rows[0] for rows in groups if len(rows) == 1), None)
        if self.mode == "best" and alone is not None:
            raise RewardError(
                f"the best of several pictures was asked for, but one of the prompt {prompts[alone]!r} is alone among "
                f"{len(images)}; set images_per_prompt to 2 or more, and num_envs to images_per_iteration, or take "
                "mode=grade."
            )
        mode: Mode = "best" if self.mode == "best" or (self.mode == "auto" and alone is None) else "grade"
        return [
            (rows, Question(images[rows], prompts[rows[0]], mode, self.grades, metadata[rows[0]])) for rows in groups
        ]

    def _answer(self, questions: Sequence[Question]) -> None:
        """Ask until all questions have an answer; the same pictures are asked about once."""
        left = list({each.key: each for each in questions if self._kept.find(each) is None}.values())
        if not left:
            return
        if self.replay is not None:
            raise RewardError(
                f"the file of votes {self.replay!r} has none on {len(left[0].pictures)} pictures of the prompt "
                f"{left[0].prompt!r}, and {len(left) - 1} more such groups; a replay needs the same pictures, bit for "
                "bit, in the same groups: the run's own settings, seed, versions and number of threads."
            )
        opened = self._opened()
        page.announce(
            f"votes: {len(left)} {'question waits' if len(left) == 1 else 'questions wait'} at {self.address}"
        )
        opened.ask(left, self._kept.add, self._should_stop)

    def _opened(self) -> page.VotingPage:
        if self._page is None:
            self._page = page.VotingPage(self.host, self.port)
            page.announce(f"votes: open {self._page.address} to be the reward")
            if not self.host.startswith(_LOOPBACK):
                page.announce(
                    "votes: other machines can reach this page; whoever has its address can vote. It is not encrypted."
                )
        return self._page


def _stand_in(text: str) -> RewardFunction:
    """Return the reward of evaluations; raise ValueError where it would ask too."""
    from diffusion_gym.rewards import resolve_reward

    if any(term.reward.partition("?")[0] == Votes.name for term in parse_reward(text)):
        raise ValueError(f"evaluate={text!r} would ask, too; expected a reward that needs nobody.")
    return resolve_reward(text)
