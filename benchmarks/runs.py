"""One training run in one folder: started, stopped, resumed and finished by the same call.

The folder holds ``run.json`` (specification and provenance), ``metrics.jsonl`` (the log, a line a dump),
``evaluations.jsonl`` (rewards of every evaluation image, and of every held-out one), ``images/`` (their grids),
``checkpoint.zip`` and, at the end, the tuned weights in diffusers' own format beside a model card (``README.md``).
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch import Tensor

import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm
from algorithms.base import FORWARDS_PER_TRAINED_ROW
from algorithms.checkpoint import write_atomically
from algorithms.evaluation import Evaluation, evaluation_prompts
from benchmarks.metrics import resolve_metric
from benchmarks.model_card import write_model_card
from benchmarks.pictures import grid
from benchmarks.provenance import provenance
from benchmarks.settings import RunSpec
from benchmarks.tensorboard import TensorBoard
from diffusion_gym.rewards import RewardError, file_digests

GRID_COLUMNS = 10
_RUN, _CHECKPOINT, _METRICS, _EVALUATIONS = "run.json", "checkpoint.zip", "metrics.jsonl", "evaluations.jsonl"


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


@dataclass(frozen=True)
class RunRecord:
    """A run's folder, read back.

    Attributes:
        spec: what was run.
        complete: whether it reached its budget.
        evaluations: one mapping each: iteration, costs, rewards (n values), metrics.
        costs: as last logged: reward queries, forward-equivalents, images, seconds.
        provenance: versions and hardware.
        image_shape: (3, H, W).
        prompts: of each evaluation image; empty in folders of version 0.1.0.
        folder: where it lies.
    """

    spec: RunSpec
    complete: bool
    evaluations: list[dict[str, Any]]
    costs: dict[str, float]
    provenance: dict[str, Any]
    image_shape: tuple[int, int, int]
    prompts: list[str]
    folder: Path


OnProgress = Callable[[Progress], None]
OnBuilt = Callable[[DiffusionAlgorithm[Any]], None]


def run(
    spec: RunSpec,
    folder: Path,
    *,
    on_progress: OnProgress = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    checkpoint_every: int = 10,
    tensorboard: bool = False,
    on_built: OnBuilt = lambda algorithm: None,
) -> RunRecord:
    """Train to the end of the budget, from the folder's checkpoint if there is one.

    Args:
        spec: what to run.
        folder: of this run alone.
        on_progress: called after every step of the environments, and after every chunk of an update.
        should_stop: asked after every step of the environments; True checkpoints and returns.
        checkpoint_every: iterations between checkpoints.
        tensorboard: also write TensorBoard events: the log's curves, and the evaluations' grids and metrics.
        on_built: called with the algorithm before anything is written or trained.

    Raises:
        ValueError: the folder holds another run or a damaged one, or TensorBoard is asked for and not installed.
        RewardError: the reward failed; the checkpoint is that of the iteration's start.
    """
    check_same(spec, folder)
    algorithm = _build(spec, folder)
    on_built(algorithm)
    if not (folder / _RUN).is_file():  # only now: a run that cannot be built leaves no folder behind
        folder.mkdir(parents=True, exist_ok=True)
        begun = {
            "spec": spec.to_json(),
            "complete": False,
            "image_shape": algorithm.mdp.model.image_shape,
            "prompts": evaluation_prompts(algorithm.mdp.prompts, spec.config.evaluation.images),
            "provenance": provenance(),
        }
        _write_json(folder / _RUN, begun)
    _rewind(folder, algorithm.iteration)
    events = TensorBoard(folder / "tensorboard", algorithm.num_timesteps) if tensorboard else None
    writers: list[KVWriter] = [_JSONLines(folder / _METRICS), *([events] if events is not None else [])]
    algorithm.set_logger(Logger(str(folder), writers))
    recorder = _Recorder(spec, folder, on_progress, should_stop, checkpoint_every, events)
    steps = spec.total_queries * spec.task.num_inference_steps - algorithm.num_timesteps
    if steps > 0:
        _record_reward_files(folder, file_digests(spec.task.reward), algorithm.iteration)
    try:
        algorithm.learn(max(0, steps), recorder, reset_num_timesteps=False)
    except RewardError as error:
        algorithm.save(folder / _CHECKPOINT)  # nothing is lost: the iteration that failed never happened
        raise RewardError(
            f"{error}\nThe run stands at iteration {algorithm.iteration}, in {folder / _CHECKPOINT}. Once the reward "
            "is mended, the same command resumes there."
        ) from error
    algorithm.save(folder / _CHECKPOINT)
    if algorithm.costs["reward_queries"] >= spec.total_queries:
        one_file = algorithm.policy.model.exports_lora_file(algorithm.policy.lora)
        exported = folder if one_file else folder / "pipeline"
        algorithm.export(exported)
        if algorithm.policy.model.networks:  # the exact family's parameters are nothing that diffusers loads
            packages = _read_json(folder / _RUN)["provenance"]["packages"]
            evaluations = _read_lines(folder / _EVALUATIONS)
            write_model_card(exported, spec, algorithm, read_log(folder), evaluations, packages)
        _write_json(folder / _RUN, {**_read_json(folder / _RUN), "complete": True})
    return read_run(folder)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder, finished or not, also while the run goes on.

    Raises:
        ValueError: there is no run, or a damaged one.
    """
    if not (folder / _RUN).is_file():
        raise ValueError(f"{str(folder)!r} holds no run (no {_RUN}); expected a folder written by train or compare.")
    try:
        data = _read_json(folder / _RUN)
        spec = RunSpec.from_json(data["spec"])
        complete, made_by, shape = data["complete"], data["provenance"], tuple(data["image_shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(folder / _RUN)!r} is not a run as written by train or compare: {error!r}.") from error
    evaluations = _read_lines(folder / _EVALUATIONS)
    log = read_log(folder)
    costs = {name.removeprefix("cost/"): value for name, value in (log[-1] if log else {}).items() if "cost/" in name}
    return RunRecord(spec, complete, evaluations, costs, made_by, shape, data.get("prompts", []), folder)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read a run's log, a mapping a line; empty where none was written yet."""
    return _read_lines(folder / _METRICS)


def check_same(spec: RunSpec, folder: Path) -> None:
    """Refuse a folder in which another run was begun.

    Raises:
        ValueError: naming what differs.
    """
    if not (folder / _RUN).is_file():
        return
    # Read back, so that fields which the folder's version did not have yet have their defaults.
    wanted, found = _flat(spec.to_json()), _flat(RunSpec.from_json(_read_json(folder / _RUN)["spec"]).to_json())
    missing = object()
    differences = [
        f"{key} {found.get(key, 'unset')!r} there, {wanted.get(key, 'unset')!r} asked for"
        for key in [*wanted, *(set(found) - set(wanted))]
        if found.get(key, missing) != wanted.get(key, missing)
    ]
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise ValueError(f"{str(folder)!r} holds another run ({shown}). Choose another folder, or delete this one.")


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _record_reward_files(folder: Path, digests: dict[str, str], iteration: int) -> None:
    """Note the SHA-256 of the reward's files; one that changed since is told, and noted with where it begins.

    It is not refused: a reward that failed must be mended before its run can go on.
    """
    data = _read_json(folder / _RUN)
    versions: list[dict[str, Any]] = data.get("reward_files", [])
    latest = {version["path"]: version["sha256"] for version in versions}
    new = [path for path, digest in digests.items() if latest.get(path) != digest]
    for path in new:
        versions.append({"path": path, "sha256": digests[path], "from_iteration": iteration})
        if path in latest:
            warnings.warn(
                f"the reward file {path!r} changed since this run began; from iteration {iteration} on it trains "
                f"toward the new one. Both are noted in {folder / _RUN}.",
                stacklevel=3,
            )
    if new:
        _write_json(folder / _RUN, {**data, "reward_files": versions})


def _build(spec: RunSpec, folder: Path) -> DiffusionAlgorithm[Any]:
    task = spec.task
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model=task.model,
        reward=task.reward,
        prompts=task.prompts,
        num_inference_steps=task.num_inference_steps,
        device=task.device,
        dtype=task.dtype,
        vae_tiling=task.vae_tiling,
        prompt_tokens=spec.config.policy.trains_text,
    )
    cls = ALGORITHMS[spec.algorithm].cls
    if (folder / _CHECKPOINT).is_file():
        return cls.load(folder / _CHECKPOINT, env)
    return cls(env, spec.config)


def _rewind(folder: Path, iteration: int) -> None:
    """Drop what was logged after the checkpoint: a resumed run writes it again."""

    def logged_before(line: dict[str, Any]) -> bool:
        # An evaluation at the checkpoint's own iteration is made again; the update before it is not.
        return line["time/iterations"] < iteration + ("eval/reward_mean" not in line)

    keep = {_METRICS: logged_before, _EVALUATIONS: lambda line: line["iteration"] < iteration}
    for name, wanted in keep.items():
        file = folder / name
        if file.is_file():
            lines = [json.dumps(line) + "\n" for line in _read_lines(file) if wanted(line)]
            write_atomically(file, "".join(lines).encode())


class _Recorder(BaseCallback):
    """Writes evaluations, grids and checkpoints, and tells progress."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
        checkpoint_every: int,
        events: TensorBoard | None,
    ) -> None:
        super().__init__()
        self.spec, self.folder = spec, folder
        self.on_progress, self.should_stop, self.checkpoint_every = on_progress, should_stop, checkpoint_every
        self.metrics = {name: resolve_metric(name, spec.task.device) for name in spec.task.metrics}
        self.events = events
        self._recorded = -1
        self._work = _IterationWork(spec)

    @property
    def algorithm(self) -> DiffusionAlgorithm[Any]:
        """The algorithm that is learning."""
        return self.model  # type: ignore[return-value]

    def _on_training_start(self) -> None:
        self.algorithm.after_backward = self._on_backward

    def _on_rollout_start(self) -> None:
        self._record_evaluation()
        self._work.begin()
        iteration = self.algorithm.iteration
        if iteration and iteration % self.checkpoint_every == 0:
            self.algorithm.save(self.folder / _CHECKPOINT)

    def _on_step(self) -> bool:
        self._work.sampled += self.spec.config.num_envs
        self._tell()
        return not self.should_stop()

    def _on_backward(self) -> None:
        self._work.trained += 1
        self._tell()

    def _tell(self) -> None:
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
        picture, said = self._record_images(evaluation, f"{evaluation.iteration:06d}")
        line = {"iteration": evaluation.iteration, "costs": dict(self.algorithm.costs), **said}
        if evaluation.held_out is not None:
            _, line["held_out"] = self._record_images(evaluation.held_out, f"{evaluation.iteration:06d}-held-out")
        if self.events is not None:
            self.events.write_evaluation(picture, said["metrics"], self.algorithm.num_timesteps)
        with (self.folder / _EVALUATIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _record_images(self, evaluation: Evaluation, name: str) -> tuple[Image.Image, dict[str, Any]]:
        """Save an evaluation's grid; return it, and what its line says of its images."""
        images = self.folder / "images"
        images.mkdir(exist_ok=True)
        picture = grid(evaluation.images, GRID_COLUMNS)
        picture.save(images / f"{name}.png")
        said: dict[str, Any] = {"rewards": _rounded(evaluation.rewards), "metrics": self._metrics(evaluation)}
        if evaluation.parts:
            said["parts"] = {part: _rounded(scores) for part, scores in evaluation.parts.items()}
        return picture, said

    def _metrics(self, evaluation: Evaluation) -> dict[str, float]:
        return {name: metric(evaluation.images, evaluation.prompts) for name, metric in self.metrics.items()}


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


class _JSONLines(KVWriter):
    """Stable-Baselines3 log output: a JSON line a dump, appended, so that a resumed run goes on."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one line."""
        line = {"step": step, "clock": round(time.time(), 3), **key_values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines up to the first torn one: a running or killed run may have written its last line in part."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({error}). Delete the folder and run again, or put a copy of the file back."
        ) from error


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
