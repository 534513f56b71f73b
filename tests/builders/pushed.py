"""Runs whose gold and reward are given, evaluation by evaluation."""

from collections.abc import Mapping, Sequence

from algorithms import ALGORITHMS
from algorithms.config.base import override
from benchmarks.runs.record import Evaluation, Run
from benchmarks.runs.spec import RunSpec, TaskConfig


def pushed(
    gold: Sequence[float],
    proxy: Sequence[float] | None = None,
    metric: str = "recognised",
    reward: str = "incompressibility",
    task: str = "",
    variant: str = "ddpo-is",
    seed: int = 0,
    images: int = 96,
    parts: Mapping[str, Sequence[float]] | None = None,
) -> Run:
    """Return a run that is evaluated every 128 queries."""
    lines = [
        Evaluation(
            iteration=at,
            costs={"reward_queries": 128.0 * at, "forward_equivalents": 1.0, "images": 1.0, "seconds": 1.0},
            rewards=[float(at) if proxy is None else proxy[at]] * images,
            metrics={metric: value},
            parts={name: [scores[at]] * images for name, scores in (parts or {}).items()},
        )
        for at, value in enumerate(gold)
    ]
    spec = RunSpec("ddpo-is", override(ALGORITHMS["ddpo-is"].config, seed=seed), TaskConfig(reward=reward))
    return Run(task or reward, variant, spec, True, lines, lines[-1].costs, {"processor": "a CPU"}, (3, 64, 64), [])
