"""One run as a comparison's ``results.json`` and the run's own folder hold it: typed, and read in one place."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.runs.spec import RunSpec

#: What an evaluation may have beside its own images: other prompts, another sampler.
_OTHERS = ("held_out", "deployed", "deployed_held_out")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a set of evaluation images scored.

    Attributes:
        rewards: of each image.
        metrics: name -> value; NaN where it could not be measured.
        parts: name -> score of each image, of a reward with several parts; else empty.
    """

    rewards: list[float]
    metrics: dict[str, float]
    parts: dict[str, list[float]] = field(default_factory=dict)

    @property
    def mean_reward(self) -> float:
        """Mean of the images' rewards."""
        return float(sum(self.rewards) / len(self.rewards))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Scores):
    """One evaluation of a run.

    Attributes:
        iteration: after which it was made.
        costs: so far: reward_queries, forward_equivalents, images, seconds.
        held_out: the same on prompts that are not trained on; None where there are none.
        deployed: the same under the sampler that the tuned model is used with; None where it was not measured.
        deployed_held_out: the same on prompts that are not trained on.
    """

    iteration: int
    costs: dict[str, float]
    held_out: Scores | None = None
    deployed: Scores | None = None
    deployed_held_out: Scores | None = None

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Evaluation":
        """Return what a line of ``evaluations.jsonl``, or of ``results.json``, says."""
        others: dict[str, Any] = {name: Scores(**_scores(line[name])) for name in _OTHERS if name in line}
        return cls(iteration=line["iteration"], costs=line["costs"], **others, **_scores(line))

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON, without what it does not have."""
        line = {"iteration": self.iteration, "costs": self.costs, **_said(self)}
        others = {name: getattr(self, name) for name in _OTHERS}
        return line | {name: _said(other) for name, other in others.items() if other is not None}


@dataclass(frozen=True)
class Run:
    """One run, finished or not.

    Attributes:
        task: name of the comparison's task; the reward where the run is not part of a comparison.
        variant: name of what is compared on the task; the algorithm where the run is not part of a comparison.
        spec: what is run.
        complete: whether it reached its budget, or was stopped by its own safeguards.
        evaluations: in order.
        costs: as last logged: reward_queries, forward_equivalents, images, seconds.
        provenance: versions and hardware.
        image_shape: (3, H, W).
        prompts: of each evaluation image.
        folder: where its files are, from the comparison's folder.
        stopped_early: why it was stopped before its budget was spent; None where it was not.
        best: metric, value and iteration of ``best.zip``, where it is kept.
        metadata: of each evaluation image's prompt; empty where no prompt has any.
        held_out_prompts: of each held-out evaluation image; empty where none are held out, or the run is older.
        held_out_metadata: likewise.
    """

    task: str
    variant: str
    spec: RunSpec
    complete: bool
    evaluations: list[Evaluation]
    costs: dict[str, float]
    provenance: dict[str, Any]
    image_shape: tuple[int, int, int]
    prompts: list[str]
    folder: str = ""
    stopped_early: str | None = None
    best: dict[str, Any] | None = None
    metadata: list[dict[str, Any]] = field(default_factory=list)
    held_out_prompts: list[str] = field(default_factory=list)
    held_out_metadata: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.spec.config.seed

    @property
    def name(self) -> str:
        """TASK/VARIANT/seed-N: what the run is compared as."""
        return f"{self.task}/{self.variant}/seed-{self.seed}"

    def renamed(self, name: str) -> "Run":
        """Return the run as another one's task and variant: TASK/VARIANT/seed-N."""
        task, variant, _ = name.split("/")
        return dataclasses.replace(self, task=task, variant=variant)

    def to_json(self) -> dict[str, Any]:
        """Return the run as JSON."""
        ended = {"stopped_early": self.stopped_early, "best": self.best}
        shown = {name: getattr(self, name) for name in ("metadata", "held_out_prompts", "held_out_metadata")}
        return {
            "folder": self.folder,
            "task": self.task,
            "variant": self.variant,
            "complete": self.complete,
            "spec": self.spec.to_json(),
            "image_shape": list(self.image_shape),
            "prompts": self.prompts,
            "costs": self.costs,
            "evaluations": [evaluation.to_json() for evaluation in self.evaluations],
            "provenance": self.provenance,
            **{name: value for name, value in ended.items() if value is not None},
            **{name: value for name, value in shown.items() if value},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Run":
        """Return the run that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: what is missing, or not as it is written.
        """
        typed = {
            "spec": RunSpec.from_json(data["spec"]),
            "evaluations": [Evaluation.from_json(line) for line in data["evaluations"]],
            "image_shape": tuple(data["image_shape"]),
        }
        return cls(**{**data, **typed})


def _scores(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Scores; a metric that could not be measured is null in JSON, which has no NaN."""
    metrics = {name: math.nan if value is None else value for name, value in line["metrics"].items()}
    return {"rewards": line["rewards"], "metrics": metrics, "parts": line.get("parts", {})}


def _said(scores: Scores) -> dict[str, Any]:
    said: dict[str, Any] = {"rewards": scores.rewards, "metrics": scores.metrics}
    return {**said, "parts": scores.parts} if scores.parts else said
