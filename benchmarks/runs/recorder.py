"""What a run writes while it learns: evaluations, pictures, checkpoints; and how it reports its progress."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from algorithms import DiffusionAlgorithm
from algorithms.base import FORWARDS_PER_TRAINED_ROW
from algorithms.checkpoints.published import write_atomically
from algorithms.evaluation import Evaluation
from algorithms.parallel.ranks import current_ranks
from benchmarks.runs.folder import CHECKPOINT, EVALUATIONS, IMAGES, keep_checkpoint
from benchmarks.runs.metrics import Metric, check_needs, is_distance, measure, resolve_distance, resolve_metric
from benchmarks.runs.pictures import dispensable, grid
from benchmarks.runs.spec import RunSpec, Writing
from diffusion_gym.jsonlines import append_line
from diffusion_gym.models import check_device
from diffusion_gym.prompts import load_prompts
from diffusion_gym.rewards.attended import TrainingRun, begin_run

GRID_COLUMNS = 10


@dataclass(frozen=True)
class Progress:
    """Where a run is, and its latest rewards.

    Attributes:
        images: sampled and trained on so far; within an iteration a fraction that grows with the work done.
        reward: mean of the latest rollout.
        evaluation: mean of the latest evaluation.
    """

    images: float
    reward: float | None
    evaluation: float | None


OnProgress = Callable[[Progress], None]


class EvaluationWriter(Protocol):
    """A log that also takes evaluations: TensorBoard, Weights & Biases."""

    def write_evaluation(self, picture: Image.Image, metrics: Mapping[str, float], step: int) -> None:
        """Write an evaluation's grid, and those of its metrics that the log does not have."""


class Recorder(BaseCallback):
    """Write evaluations, grids and checkpoints, report progress, and stop the run when asked; the first rank writes."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        writing: Writing,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
        events: Sequence[EvaluationWriter],
    ) -> None:
        """See :func:`benchmarks.runs.run.run`; ``events`` also take the evaluations."""
        super().__init__()
        self.spec, self.folder, self.writing = spec, folder, writing
        self.on_progress, self.should_stop, self.events = on_progress, should_stop, events
        device = str(check_device(spec.task.device))
        self.metrics = {name: resolve_metric(name, device) for name in spec.metrics if not is_distance(name)}
        self.distances = {name: resolve_distance(name) for name in spec.metrics if is_distance(name)}
        self._ranks = current_ranks()
        self._recorded = -1
        #: Whether the run was asked to stop.
        self.stopped = False
        #: The latest evaluation's line in ``evaluations.jsonl``.
        self.line: dict[str, Any] = {}
        self._work = _IterationWork(spec)

    @property
    def algorithm(self) -> DiffusionAlgorithm[Any]:
        """The algorithm that is learning."""
        return self.model  # type: ignore[return-value]

    def _on_training_start(self) -> None:
        held_out = self.spec.config.evaluation.held_out_prompts
        for metric in self.metrics.values():
            check_needs(metric, self.algorithm.mdp.records)
            check_needs(metric, load_prompts(held_out).records if held_out else ())
        self.algorithm.gradient_steps.after_backward = self._on_backward
        self.algorithm.should_stop = self._is_to_stop
        config = self.spec.config
        run = TrainingRun(
            folder=self.folder,
            images_per_prompt=config.images_per_prompt,
            num_envs=config.num_envs,
            evaluates=config.evaluation.images > 0,
            processes=self._ranks.size,
            should_stop=self._is_to_stop,
        )
        begin_run(self.algorithm.mdp.reward, run)

    def _on_rollout_start(self) -> None:
        self._record_evaluation()
        self._work.begin()
        iteration = self.algorithm.iteration
        if iteration and iteration % self.writing.checkpoint_every == 0:
            self.save()

    def _on_step(self) -> bool:
        self._work.sampled += self.spec.config.num_envs
        self._report_progress()
        return not self._is_to_stop()

    def _on_backward(self) -> None:
        self._work.trained += 1
        self._report_progress()

    def _on_training_end(self) -> None:
        self._record_evaluation()
        self._work.begin()
        self._report_progress()

    def save(self) -> None:
        """Write the checkpoint, and keep earlier ones as asked for. Collective: call on every rank."""
        self.algorithm.save(self.folder / CHECKPOINT)
        kept = self.writing.keep_checkpoints
        self._ranks.first(lambda: keep_checkpoint(self.folder, self.algorithm.iteration, kept))

    def _is_to_stop(self) -> bool:
        self.stopped = self.stopped or self.should_stop()
        return self.stopped

    def _report_progress(self) -> None:
        if not self._ranks.is_first:
            return
        evaluation = self.algorithm.last_evaluation
        images = self.algorithm.iteration * self.spec.config.images_per_iteration + self._work.images
        mean = None if evaluation is None else float(evaluation.rewards.mean())
        self.on_progress(Progress(images, self.algorithm.last_rollout_reward, mean))

    def _record_evaluation(self) -> None:
        evaluation = self.algorithm.last_evaluation
        if evaluation is None or evaluation.iteration == self._recorded:
            return
        self._recorded = evaluation.iteration
        with self.algorithm.averaged():  # as the evaluation's images were drawn
            distances = {name: distance(self.algorithm) for name, distance in self.distances.items()}
        self._ranks.first(lambda: self._write_evaluation(evaluation, distances))

    def _write_evaluation(self, evaluation: Evaluation, distances: dict[str, float]) -> None:
        picture, line = self._measure_and_draw(evaluation, f"{evaluation.iteration:06d}")
        line["metrics"] |= distances
        line = {"iteration": evaluation.iteration, "costs": dict(self.algorithm.costs), **line}
        for name, other in others_of(evaluation).items():
            file = f"{evaluation.iteration:06d}-{name.replace('_', '-')}"
            _, line[name] = self._measure_and_draw(other, file)
        logged = evaluation.distances()
        more = {name: value for name, value in line["metrics"].items() if name not in logged}
        for events in self.events:
            with dispensable(f"the pictures of iteration {evaluation.iteration}"):
                events.write_evaluation(picture, more, self.algorithm.num_timesteps)
        append_line(self.folder / EVALUATIONS, line)
        self.line = line

    def _measure_and_draw(self, evaluation: Evaluation, name: str) -> tuple[Image.Image, dict[str, Any]]:
        """Save an evaluation's grid; return it, and the rewards and metrics of its images."""
        picture, content = grid(evaluation.images, GRID_COLUMNS), io.BytesIO()
        path = self.folder / IMAGES / f"{name}.png"
        with dispensable(path):
            picture.save(content, "png")
            write_atomically(path, content.getvalue())
        return picture, scores_of(evaluation, self.metrics)


def others_of(evaluation: Evaluation) -> dict[str, Evaluation]:
    """Return what was evaluated beside: name -> evaluation, of "held_out", "deployed" and "deployed_held_out"."""
    deployed = evaluation.deployed
    others = {"held_out": evaluation.held_out, "deployed": deployed}
    others["deployed_held_out"] = None if deployed is None else deployed.held_out
    return {name: other for name, other in others.items() if other is not None}


def scores_of(evaluation: Evaluation, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return the rewards and metrics of an evaluation's images as JSON."""
    shown = evaluation.images, evaluation.prompts, evaluation.metadata
    measured = {name: measure(metric, *shown) for name, metric in metrics.items()}
    scores: dict[str, Any] = {"rewards": _rounded(evaluation.rewards), "metrics": measured | evaluation.distances()}
    if evaluation.parts:
        scores["parts"] = {part: _rounded(values) for part, values in evaluation.parts.items()}
    return scores


class _IterationWork:
    """How far an iteration is, in images: denoiser rows sampled, and rows of backward passes at three times the cost.

    How many backward passes an update makes is known after one iteration; until then it is taken to train as many rows
    as were sampled.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._size = spec.config.images_per_iteration
        self._rows = self._size * spec.task.num_inference_steps
        self._chunk = spec.config.policy.chunk_size
        self._expected = self._rows / self._chunk
        self.sampled = self.trained = 0

    def begin(self) -> None:
        """Begin an iteration, expecting as many backward passes as the last one had."""
        if self.trained:
            self._expected = self.trained
        self.sampled = self.trained = 0

    @property
    def images(self) -> float:
        """Images of this iteration sampled and trained on, in fractions."""
        cost = FORWARDS_PER_TRAINED_ROW * self._chunk
        share = (self.sampled + cost * self.trained) / (self._rows + cost * self._expected)
        return self._size * min(share, 1.0)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
