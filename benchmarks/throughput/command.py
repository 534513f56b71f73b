"""``throughput``: images a second in sampling and in training, and what they cost above a floor of the same run."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback

import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm
from algorithms.base import FORWARDS_PER_TRAINED_ROW
from algorithms.checkpoints.published import check_output, published
from algorithms.rollouts import Rollout
from benchmarks.machine import available_cores
from benchmarks.provenance import provenance
from benchmarks.runs.chunk_sizes import largest_useful, sizes_beside
from benchmarks.throughput.floors import Floor
from benchmarks.throughput.meters import PeakMemory, Seconds, Stopwatch, seconds_by_operation, timed_parts
from benchmarks.throughput.options import Throughput as Throughput
from benchmarks.throughput.tables import PHASES, fastest, markdown
from diffusion_gym.models import DiffusionModel, load_model

_CHUNK_TRIALS = 3
_GROWTH_CHUNK = 8  # divides every number of rows in the growth table, so that no row is padding
_GROWTH_IMAGES = 16
_GROWTH_REPEATS = 3


def throughput(options: Throughput) -> int:
    """Measure, print the tables and write the files; returns the exit status."""
    tables = options.output.with_suffix(".md")
    for file in (options.output, tables):
        check_output(file)
    with published(options.output.parent) as fresh:  # now: what cannot be written is not measured
        result = _measure(options)
        text = markdown(result)
        (fresh / options.output.name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (fresh / tables.name).write_text(text, encoding="utf-8")
    print(f"{text}\nraw numbers: {options.output}")
    return 0


def _measure(options: Throughput) -> dict[str, Any]:
    torch.set_num_threads(options.threads or available_cores())
    bench = Bench(options)
    result: dict[str, Any] = {
        "settings": {name: value for name, value in dataclasses.asdict(options).items() if name != "output"},
        "iteration": bench.describe(),
        "chunks": bench.chunks,
        "iteration_chunks": bench.time_program(),
        **bench.measure(options.pairs),
        "provenance": provenance(),
    }
    if options.growth:
        result["growth"] = measure_growth(options)
    if options.profile:
        result["profile"] = bench.profile()
    return result


class Bench:
    """One algorithm ready to iterate, and its floor."""

    def __init__(self, options: Throughput) -> None:
        """Build the algorithm, run a first iteration, and choose the floor's chunk sizes."""
        self.algorithm = build(options)
        self.device = self.algorithm.mdp.model.device
        iterate(self.algorithm)  # encodes the prompts, and warms up kernels and allocator
        self.rows = self._training_rows()
        self.floor = Floor(self.algorithm, self.algorithm._n_updates, self.rows // self.algorithm._n_updates)
        self.chunks = {
            phase: self._try_chunks(phase, self.floor.sizes(phase, options.policy.chunk_size))
            for phase in (*PHASES, "decoding")
        }

    def _training_rows(self) -> int:
        """Rows the first iteration trained on, from the costs it counted."""
        policy, costs = self.algorithm.policy, self.algorithm.costs
        forwards = costs["forward_equivalents"] / policy.forwards_per_row
        return round((forwards - costs["images"] * policy.num_inference_steps) / FORWARDS_PER_TRAINED_ROW)

    def _try_chunks(self, phase: str, sizes: Sequence[int]) -> dict[int, float]:
        """Return the least seconds of the floor in some trials, by chunk size."""
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(_CHUNK_TRIALS):
            for size in sizes:
                times[size].append(self._time(partial(getattr(self.floor, phase), size)).wall)
        return {size: min(values) for size, values in times.items()}

    def _time(self, work: Callable[[], None]) -> Seconds:
        started = Seconds.now(self.device)
        work()
        return Seconds.now(self.device) - started

    def run_floor(self, phase: str) -> None:
        """One iteration's floor, each part at its best chunk size."""
        for part in ("sampling", "decoding") if phase == "sampling" else (phase,):
            getattr(self.floor, part)(fastest(self.chunks[part]))

    def time_program(self) -> dict[int, float]:
        """Return the least seconds of the program's iteration in some trials, by chunk size around its own."""
        policy, here = self.algorithm.policy, self.algorithm.policy.chunk_size
        times: dict[int, list[float]] = {size: [] for size in sizes_beside(here, largest_useful(self.algorithm), 4)}
        for _ in range(_CHUNK_TRIALS):
            for size in times:
                policy.chunk_size = size
                times[size].append(sum(phase.wall for phase in iterate(self.algorithm).values()))
        policy.chunk_size = here
        return {size: min(values) for size, values in times.items()}

    def describe(self) -> dict[str, Any]:
        """What an iteration is."""
        policy, model = self.algorithm.policy, self.algorithm.mdp.model
        return {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "latent_shape": list(model.latent_shape),
            "images": self.algorithm.config.images_per_iteration,
            "steps": policy.num_inference_steps,
            "training_rows": self.rows,
            "updates": self.floor.updates,
            "parameters": sum(value.numel() for value in policy.denoiser.parameters()),
            "trainable_parameters": sum(value.numel() for value in policy.trainable_parameters().values()),
            "rollout_megabytes": self.floor.rollout.nbytes / 1e6,
        }

    def measure(self, pairs: int) -> dict[str, Any]:
        """Time program and floor in turns, and then take their memory."""
        times: dict[str, list[tuple[Seconds, Seconds]]] = {phase: [] for phase in PHASES}
        for pair in range(pairs):
            program = {} if pair % 2 else iterate(self.algorithm)
            floor = {phase: self._time(partial(self.run_floor, phase)) for phase in PHASES}
            program = program or iterate(self.algorithm)
            for phase in PHASES:
                times[phase].append((program[phase], floor[phase]))
        memory = self._memory()
        n = self.algorithm.config.images_per_iteration
        return {phase: {**_summary(times[phase], n), **memory[phase]} for phase in PHASES}

    def _memory(self) -> dict[str, dict[str, float]]:
        """Peak memory of the floor, and then of the program, in each phase."""
        found: dict[str, dict[str, float]] = {}
        for phase in PHASES:
            with PeakMemory(self.device) as peak:
                self.run_floor(phase)
            found[phase] = {"floor_megabytes": peak.megabytes}
        marks = _Marks(self.device, memory=True)
        iterate(self.algorithm, marks)
        for phase in PHASES:
            found[phase] |= {
                "megabytes": marks.megabytes[phase],
                "megabytes_above_floor": marks.megabytes[phase] / found[phase]["floor_megabytes"] - 1,
            }
        return found

    def profile(self) -> dict[str, Any]:
        """Share of one iteration's seconds by part of the program, and by kind of operation; largest first."""
        watch = Stopwatch(self.device)
        with timed_parts(self.algorithm, watch):
            took = sum(phase.wall for phase in iterate(self.algorithm).values())
        watch.seconds["the program: environment, noise, transitions, losses, storage, log"] = took - sum(
            watch.seconds.values()
        )
        with torch.profiler.profile() as kernels:
            iterate(self.algorithm)
        return {"parts": _shares(watch.seconds), "operations": _shares(seconds_by_operation(kernels))}


class _Marks(BaseCallback):
    """Takes the time, and where asked the peak memory, of an iteration's two phases."""

    def __init__(self, device: torch.device, memory: bool = False) -> None:
        super().__init__()
        self.device, self.memory = device, memory
        self.seconds: dict[str, Seconds] = {}
        self.megabytes: dict[str, float] = {}

    def _on_training_start(self) -> None:
        self._begin()

    def _on_rollout_end(self) -> None:
        self._end("sampling")
        self._begin()

    def _on_training_end(self) -> None:
        self._end("training")

    def _on_step(self) -> bool:
        return True

    def _begin(self) -> None:
        if self.memory:
            self._peak = PeakMemory(self.device).__enter__()
        self._started = Seconds.now(self.device)

    def _end(self, phase: str) -> None:
        self.seconds[phase] = Seconds.now(self.device) - self._started
        if self.memory:
            self._peak.__exit__()
            self.megabytes[phase] = self._peak.megabytes


def iterate(algorithm: DiffusionAlgorithm[Any], marks: _Marks | None = None) -> dict[str, Seconds]:
    """Let the algorithm learn for one iteration, as any user would; return what sampling and training took."""
    marks = _Marks(algorithm.mdp.model.device) if marks is None else marks
    steps = algorithm.config.images_per_iteration * algorithm.policy.num_inference_steps
    algorithm.learn(steps, marks, reset_num_timesteps=False)
    return marks.seconds


def build(options: Throughput, model: DiffusionModel | None = None) -> DiffusionAlgorithm[Any]:
    """Make the environment and the algorithm."""
    task = options.task()
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model=model or load_model(task.model, task.device, task.dtype),
        reward=task.reward,
        prompts=task.prompts,
        num_inference_steps=task.num_inference_steps,
        prompt_tokens=options.policy.trains_text,
    )
    return ALGORITHMS[options.algorithm].cls(env, options.config())


def measure_growth(options: Throughput) -> list[dict[str, Any]]:
    """Time iterations of growing images, steps and latents, one at a time."""
    small = dataclasses.replace(
        options,
        images=_GROWTH_IMAGES,
        num_envs=_GROWTH_IMAGES,
        policy=dataclasses.replace(options.policy, chunk_size=_GROWTH_CHUNK),
    )
    model = load_model(options.model, options.device, options.dtype)
    cases: list[tuple[str, Throughput, DiffusionModel]] = [
        *(("images", dataclasses.replace(small, images=factor * small.images), model) for factor in (1, 2, 4)),
        *(
            ("steps", dataclasses.replace(small, num_inference_steps=factor * small.num_inference_steps // 2), model)
            for factor in (1, 2, 4)
        ),
    ]
    if model.latent_shape[1:] != (1, 1):  # points in the plane have no size to vary
        cases += [("latent size", small, resized(model, factor)) for factor in (1, 2, 4)]
    return [_grown(*case) for case in cases]


def _grown(axis: str, options: Throughput, model: DiffusionModel) -> dict[str, Any]:
    algorithm = build(options, model)
    iterate(algorithm)
    runs = [iterate(algorithm) for _ in range(_GROWTH_REPEATS)]
    shape = model.latent_shape
    seconds = {phase: statistics.median(run[phase].wall for run in runs) for phase in PHASES}
    return {
        "axis": axis,
        "images": options.images,
        "steps": options.num_inference_steps,
        "latent_shape": list(shape),
        "seconds": seconds,
        "milliseconds_an_image": {phase: 1e3 * value / options.images for phase, value in seconds.items()},
        "rollout_megabytes": Rollout.empty(algorithm.policy, [""] * options.images, True).nbytes / 1e6,
    }


def resized(model: DiffusionModel, factor: int) -> DiffusionModel:
    """Return the model on latents ``factor`` times as high and wide; the networks are convolutional and shared."""
    other: DiffusionModel = object.__new__(type(model))
    other.__dict__.update(vars(model))
    (c, h, w), (_, height, width) = model.latent_shape, model.image_shape
    other.latent_shape, other.image_shape = (c, h * factor, w * factor), (3, height * factor, width * factor)
    return other


def _summary(times: Sequence[tuple[Seconds, Seconds]], images: int) -> dict[str, Any]:
    """Medians over pairs of (program, floor)."""
    wall = [program.wall / floor.wall for program, floor in times]
    cpu = [program.cpu / floor.cpu for program, floor in times]
    return {
        "images_per_second": images / statistics.median(program.wall for program, _ in times),
        "floor_images_per_second": images / statistics.median(floor.wall for _, floor in times),
        "above_floor": statistics.median(wall) - 1,
        "above_floor_cpu": statistics.median(cpu) - 1,
        "pairs": [
            {"program": dataclasses.asdict(program), "floor": dataclasses.asdict(floor)} for program, floor in times
        ],
    }


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {name: value / total for name, value in sorted(seconds.items(), key=lambda item: -item[1])}
