"""``throughput``: images a second in sampling and in training, and what they cost above a floor of the same run."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback

import diffusion_gym
from algorithms import ALGORITHMS, AlgorithmConfig, DiffusionAlgorithm, PolicyConfig
from algorithms.base import FORWARDS_PER_TRAINED_ROW
from algorithms.checkpoint import write_atomically
from algorithms.config import EvaluationConfig
from algorithms.rollouts import Rollout
from benchmarks.chunk_sizes import largest_useful, sizes_beside
from benchmarks.floors import Floor
from benchmarks.machine import available_cores
from benchmarks.meters import PeakMemory, Seconds, Stopwatch, seconds_by_operation, timed_parts
from benchmarks.provenance import provenance
from benchmarks.settings import TaskConfig
from benchmarks.suite import EMBEDDED, POLICY, PROMPTS, SETTINGS
from benchmarks.throughput_tables import PHASES, fastest, markdown
from diffusion_gym.envs.config import DEFAULT_MODEL
from diffusion_gym.models import DiffusionModel, load_model, recommended

_CHUNK_TRIALS = 3
_GROWTH_CHUNK = 8  # divides every number of rows in the growth table, so that no row is padding
_GROWTH_IMAGES = 16
_GROWTH_REPEATS = 3


@dataclass(frozen=True)
class Throughput:
    """Measure sampling and training against the denoiser, VAE, reward and optimizer alone, in the same run.

    The default is the setting of compare on the embedded model; steps and policy follow --model. Floor and program
    take turns; the figures are medians over the pairs. The fastest chunk size is named.
    """

    model: str = DEFAULT_MODEL
    """Embedded model, exact model, folder in diffusers' layout, or hub id."""
    reward: str = "compressibility"
    """A registered reward."""
    prompts: str | None = None
    """A prompt set or a file of prompts; None takes ten-animals on the embedded model, elsewhere its own."""
    num_inference_steps: int = 10
    """Denoising steps per image."""
    device: str = "auto"
    """Where the model runs: auto (a GPU that CUDA knows, or the CPU), cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen networks."""
    algorithm: str = "ddpo-is"
    """Whose iterations are measured, with compare's settings."""
    policy: PolicyConfig = POLICY
    """Sampler and trained weights."""
    images: int = 64
    """Images an iteration."""
    num_envs: int = 32
    """Images side by side; must divide images."""
    pairs: int = 7
    """Iterations measured, each beside its floor."""
    threads: int = 1
    """Torch threads; 0 takes all cores."""
    growth: bool = False
    """Also measure how the time grows with images, steps and latent size."""
    profile: bool = False
    """Also name the largest costs of one iteration, by part of the program and by kind of operation."""
    output: Path = Path("runs/throughput.json")
    """Where the raw numbers go, as JSON; the tables go beside it, as Markdown."""

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        self.task()
        if self.algorithm not in SETTINGS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; expected one of {sorted(SETTINGS)}.")
        if self.pairs < 1 or self.threads < 0:
            raise ValueError(f"expected pairs >= 1 and threads >= 0, got {self.pairs} and {self.threads}.")
        self.config()

    @classmethod
    def of_model(cls, model: str) -> "Throughput":
        """Return the defaults for a model: its own number of steps, and the policy that it recommends."""
        policy = AlgorithmConfig.for_model(model).policy
        return cls(model=model, num_inference_steps=recommended(model).num_inference_steps, policy=policy)

    def task(self) -> TaskConfig:
        """Return the task."""
        prompts = PROMPTS if self.prompts is None and self.model == DEFAULT_MODEL else self.prompts
        return TaskConfig(self.model, self.reward, prompts, self.num_inference_steps, self.device, self.dtype)

    def config(self) -> AlgorithmConfig:
        """Return the algorithm's configuration; evaluation is off, as its cost is no part of an iteration."""
        chosen = EMBEDDED.config(self.algorithm, 0, images_per_iteration=self.images, num_envs=self.num_envs)
        return dataclasses.replace(chosen, policy=self.policy, evaluation=EvaluationConfig())


def throughput(options: Throughput) -> int:
    """Measure, print the tables and write the files; returns the exit status."""
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
    text = markdown(result)
    write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(options.output.with_suffix(".md"), text.encode())
    print(f"{text}\nraw numbers: {options.output}")
    return 0


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
