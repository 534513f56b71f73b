"""What a run writes while it goes on: log lines, evaluations, pictures, checkpoints; and how it tells progress."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from torch import Tensor

from algorithms import DiffusionAlgorithm
from algorithms.base import FORWARDS_PER_TRAINED_ROW
from algorithms.checkpoints.published import write_atomically
from algorithms.evaluation import Evaluation
from algorithms.parallel.ranks import current_ranks
from benchmarks.runs.folder import CHECKPOINT, EVALUATIONS, IMAGES, keep_checkpoint
from benchmarks.runs.jsonlines import append_line
from benchmarks.runs.metrics import is_distance, resolve_distance, resolve_metric
from benchmarks.runs.pictures import dispensable, grid
from benchmarks.runs.spec import RunSpec
from diffusion_gym.models import check_device

GRID_COLUMNS = 10


@dataclass(frozen=True)
class Progress:
    """Where a run is, and its latest rewards.

    Attributes:
        images: sampled and trained on so far; within an iteration a fraction that grows with the work done in it.
        total_images: asked for in all, the reward queries of the budget.
        reward: mean of the latest rollout.
        evaluation: mean of the latest evaluation.
    """

    images: float
    total_images: int
    reward: float | None
    evaluation: float | None


OnProgress = Callable[[Progress], None]


class EvaluationWriter(Protocol):
    """A log that also takes evaluations: TensorBoard, Weights & Biases."""

    def write_evaluation(self, picture: Image.Image, metrics: Mapping[str, float], step: int) -> None:
        """Write an evaluation's grid, and its metrics beside the reward, which the log has."""


class JSONLines(KVWriter):
    """Stable-Baselines3 log output: a JSON line a dump, appended, so that a resumed run goes on."""

    def __init__(self, path: Path) -> None:
        """Args: path: of the file."""
        self._path = path

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one line."""
        append_line(self._path, {"step": step, "clock": round(time.time(), 3), **key_values})

    def close(self) -> None:
        """Do nothing: the file is open only while a line is written."""


class Recorder(BaseCallback):
    """Writes evaluations, grids and checkpoints, and tells progress; of several ranks the first does."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
        checkpoint_every: int,
        keep_checkpoints: int,
        events: Sequence[EvaluationWriter],
    ) -> None:
        """See :func:`benchmarks.runs.run.run`; ``events`` also take the evaluations."""
        super().__init__()
        self.spec, self.folder = spec, folder
        self.on_progress, self.should_stop, self.checkpoint_every = on_progress, should_stop, checkpoint_every
        names = spec.metrics
        self.metrics = {
            name: resolve_metric(name, str(check_device(spec.task.device))) for name in names if not is_distance(name)
        }
        self.distances = {name: resolve_distance(name) for name in names if is_distance(name)}
        self.keep_checkpoints, self.events = keep_checkpoints, events
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
        self.algorithm.gradient_steps.after_backward = self._on_backward
        self.algorithm.should_stop = self._is_to_stop

    def _on_rollout_start(self) -> None:
        self._record_evaluation()
        self._work.begin()
        iteration = self.algorithm.iteration
        if iteration and iteration % self.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, and keep it beside earlier ones where that is wanted. All ranks take part."""
        self.algorithm.save(self.folder / CHECKPOINT)
        self._ranks.first(lambda: keep_checkpoint(self.folder, self.algorithm.iteration, self.keep_checkpoints))

    def _on_step(self) -> bool:
        self._work.sampled += self.spec.config.num_envs
        self._tell()
        return not self._is_to_stop()

    def _is_to_stop(self) -> bool:
        self.stopped = self.stopped or self.should_stop()
        return self.stopped

    def _on_backward(self) -> None:
        self._work.trained += 1
        self._tell()

    def _tell(self) -> None:
        if not self._ranks.is_first:
            return
        evaluation = self.algorithm.last_evaluation
        before = self.algorithm.iteration * self.spec.config.images_per_iteration
        self.on_progress(
            Progress(
                before + self._work.images,
                self.spec.total_queries,
                self.algorithm.last_rollout_reward,
                None if evaluation is None else float(evaluation.rewards.mean()),
            )
        )

    def _on_training_end(self) -> None:
        self._record_evaluation()
        self._work.begin()
        self._tell()

    def _record_evaluation(self) -> None:
        evaluation = self.algorithm.last_evaluation
        if evaluation is None or evaluation.iteration == self._recorded:
            return
        self._recorded = evaluation.iteration
        with self.algorithm.averaged():  # as the evaluation's images were drawn
            distances = {name: measure(self.algorithm) for name, measure in self.distances.items()}
        self._ranks.first(lambda: self._write_evaluation(evaluation, distances))

    def _write_evaluation(self, evaluation: Evaluation, distances: dict[str, float]) -> None:
        picture, said = self._record_images(evaluation, f"{evaluation.iteration:06d}")
        said["metrics"] |= distances
        line = {"iteration": evaluation.iteration, "costs": dict(self.algorithm.costs), **said}
        if evaluation.held_out is not None:
            _, line["held_out"] = self._record_images(evaluation.held_out, f"{evaluation.iteration:06d}-held-out")
        in_the_log = evaluation.distances()
        beside = {name: value for name, value in said["metrics"].items() if name not in in_the_log}
        for events in self.events:
            with dispensable(f"the pictures of iteration {evaluation.iteration}"):
                events.write_evaluation(picture, beside, self.algorithm.num_timesteps)
        append_line(self.folder / EVALUATIONS, line)
        self.line = line

    def _record_images(self, evaluation: Evaluation, name: str) -> tuple[Image.Image, dict[str, Any]]:
        """Save an evaluation's grid; return it, and what its line says of its images."""
        picture, content = grid(evaluation.images, GRID_COLUMNS), io.BytesIO()
        path = self.folder / IMAGES / f"{name}.png"
        with dispensable(path):
            picture.save(content, "png")
            write_atomically(path, content.getvalue())
        said: dict[str, Any] = {"rewards": _rounded(evaluation.rewards), "metrics": self._metrics(evaluation)}
        if evaluation.parts:
            said["parts"] = {part: _rounded(scores) for part, scores in evaluation.parts.items()}
        return picture, said

    def _metrics(self, evaluation: Evaluation) -> dict[str, float]:
        named = {name: metric(evaluation.images, evaluation.prompts) for name, metric in self.metrics.items()}
        return named | evaluation.distances()


class _IterationWork:
    """How far an iteration is, in images: denoiser rows sampled, and rows of backward passes at three times the cost.

    How many backward passes an update makes is known once one iteration is over; until then the update is taken to
    train as many rows as were sampled.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._size = spec.config.images_per_iteration
        self._rows = self._size * spec.task.num_inference_steps
        self._chunk = spec.config.policy.chunk_size
        self._expected = self._rows / self._chunk
        self.sampled = self.trained = 0

    def begin(self) -> None:
        """Begin an iteration, with what the last one has taught."""
        if self.trained:
            self._expected = self.trained
        self.sampled = self.trained = 0

    @property
    def images(self) -> float:
        """Images of this iteration sampled and trained on, in fractions; less than its whole number."""
        cost = FORWARDS_PER_TRAINED_ROW * self._chunk
        share = (self.sampled + cost * self.trained) / (self._rows + cost * self._expected)
        return self._size * min(share, 1.0)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
