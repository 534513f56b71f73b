"""``throughput``: images per second in sampling and in training, and their cost above a floor of the same run."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from algorithms.checkpoints.published import check_output, published
from algorithms.execution import eager
from benchmarks.machine import available_cores
from benchmarks.provenance import provenance
from benchmarks.runs.chunk_sizes import largest_useful, sizes_beside
from benchmarks.runs.clock import Seconds
from benchmarks.throughput.floors import Floor
from benchmarks.throughput.growth import measure_growth
from benchmarks.throughput.iteration import build, iterate, iterate_counting, iterate_in_memory
from benchmarks.throughput.options import Throughput as Throughput
from benchmarks.throughput.peak_memory import PeakMemory
from benchmarks.throughput.profile import profile
from benchmarks.throughput.tables import PHASES, fastest, markdown

_CHUNK_TRIALS = 3


def throughput(options: Throughput) -> int:
    """Measure, print the tables and write the files; return the exit status."""
    tables = options.output.with_suffix(".md")
    for file in (options.output, tables):
        check_output(file)
    with published(options.output.parent) as fresh:  # first, so that nothing is measured that cannot be written
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
        result["profile"] = profile(bench.algorithm, lambda: bench.run_program()[1])
    return result


class Bench:
    """One algorithm ready to iterate, and its floor."""

    def __init__(self, options: Throughput) -> None:
        """Build the algorithm, run a first iteration, and choose the floor's chunk sizes."""
        self.algorithm = build(options)
        self.device = self.algorithm.mdp.model.device
        self.rows = iterate_counting(self.algorithm)  # also encodes the prompts, and warms up kernels and allocator
        self.floor = Floor(self.algorithm, self.algorithm._n_updates, self.rows)
        self.chunks = {
            phase: _least_by_size(self.floor.sizes(phase, options.policy.chunk_size), partial(self._time_floor, phase))
            for phase in (*PHASES, "decoding")
        }

    def _time_floor(self, phase: str, size: int) -> float:
        with eager(self.algorithm.policy):  # a compiled graph is of the program's size alone
            return self._time(lambda: getattr(self.floor, phase)(size)).wall

    def _time(self, work: Callable[[], None]) -> Seconds:
        started = Seconds.now(self.device)
        work()
        return Seconds.now(self.device) - started

    def run_floor(self, phase: str) -> None:
        """Run one iteration's floor, each part at its best chunk size."""
        with eager(self.algorithm.policy):
            for part in ("sampling", "decoding") if phase == "sampling" else (phase,):
                getattr(self.floor, part)(fastest(self.chunks[part]))

    def run_same_passes(self, phase: str) -> None:
        """Run one iteration's floor in the program's own passes."""
        for part in ("sampling", "decoding") if phase == "sampling" else (phase,):
            getattr(self.floor, part)()

    def run_program(self) -> tuple[dict[str, Seconds], float]:
        """Run one iteration; return the time of its phases, and its seconds."""
        phases = iterate(self.algorithm)
        return phases, sum(phase.wall for phase in phases.values())

    def time_program(self) -> dict[int, float]:
        """Return chunk size, around the program's own -> the least seconds of its iteration."""
        policy, here = self.algorithm.policy, self.algorithm.policy.chunk_size

        def seconds(size: int) -> float:
            policy.chunk_size = size
            return self.run_program()[1]

        times = _least_by_size(sizes_beside(here, largest_useful(self.algorithm), 4), seconds)
        policy.chunk_size = here
        return times

    def describe(self) -> dict[str, Any]:
        """Return what an iteration is."""
        policy, model = self.algorithm.policy, self.algorithm.mdp.model
        return {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "latent_shape": list(model.latent_shape),
            "images": self.algorithm.config.images_per_iteration,
            "steps": policy.num_inference_steps,
            "sampling_rows": self.rows.sampled,
            "training_rows": self.rows.trained,
            "compared_rows": self.rows.compared,
            "passes": self.rows.passes,
            "updates": self.floor.updates,
            "parameters": sum(value.numel() for value in policy.denoiser.parameters()),
            "trainable_parameters": sum(value.numel() for value in policy.trainable_parameters().values()),
            "rollout_megabytes": self.floor.rollout.nbytes / 1e6,
        }

    def measure(self, pairs: int) -> dict[str, Any]:
        """Time the program, its floor, and the floor in the program's passes in turns; then measure memory."""
        times: dict[str, list[dict[str, Seconds]]] = {phase: [] for phase in PHASES}
        for pair in range(pairs):
            program = {} if pair % 2 else iterate(self.algorithm)
            floor = {phase: self._time(partial(self.run_floor, phase)) for phase in PHASES}
            same = {phase: self._time(partial(self.run_same_passes, phase)) for phase in PHASES}
            program = program or iterate(self.algorithm)
            for phase in PHASES:
                taken = {"program": program[phase], "floor": floor[phase], "same_passes": same[phase]}
                times[phase].append(taken)
        floors: dict[str, float] = {}
        for phase in PHASES:
            with PeakMemory(self.device) as peak:
                self.run_floor(phase)
            floors[phase] = peak.megabytes
        held = iterate_in_memory(self.algorithm)
        n = self.algorithm.config.images_per_iteration
        return {
            phase: {
                **_summary(times[phase], n),
                "floor_megabytes": floors[phase],
                "megabytes": held[phase],
                "megabytes_above_floor": held[phase] / floors[phase] - 1,
            }
            for phase in PHASES
        }


def _least_by_size(sizes: Iterable[int], seconds: Callable[[int], float]) -> dict[int, float]:
    """Return size -> the least seconds in some trials, which take turns."""
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(_CHUNK_TRIALS):
        for size, taken in times.items():
            taken.append(seconds(size))
    return {size: min(taken) for size, taken in times.items()}


def _summary(times: Sequence[dict[str, Seconds]], images: int) -> dict[str, Any]:
    """Return medians over pairs of the program, its floor, and the floor in the program's own passes."""

    def median(number: Callable[[dict[str, Seconds]], float]) -> float:
        return statistics.median(map(number, times))

    return {
        "images_per_second": images / median(lambda pair: pair["program"].wall),
        "floor_images_per_second": images / median(lambda pair: pair["floor"].wall),
        "above_floor": median(lambda pair: pair["program"].wall / pair["floor"].wall) - 1,
        "above_floor_cpu": median(lambda pair: pair["program"].cpu / pair["floor"].cpu) - 1,
        "above_same_passes": median(lambda pair: pair["program"].wall / pair["same_passes"].wall) - 1,
        "above_same_passes_cpu": median(lambda pair: pair["program"].cpu / pair["same_passes"].cpu) - 1,
        "pairs": [{name: dataclasses.asdict(taken) for name, taken in pair.items()} for pair in times],
    }
