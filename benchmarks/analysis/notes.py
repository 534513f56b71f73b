"""The sentences beside a comparison's tables: seeds and intervals, scales, what is left out and what failed."""

from benchmarks.analysis.aggregate import Aggregate, shared
from benchmarks.analysis.curves import Curves
from benchmarks.analysis.results import Results
from benchmarks.analysis.tables import flat, metric_names
from benchmarks.runs.gold_judge import JUDGE
from diffusion_gym.naming import escaped


def interval_note(summary: Curves) -> str:
    """Say how many seeds there are, and what the intervals are over."""
    found = list(flat(summary))
    seeds = max(len(curve.runs) for _, _, curve in found)
    metrics = metric_names(summary)
    if seeds == 1:
        return "One seed: a mean over evaluation images, without an interval. Other seeds may end elsewhere."
    middle = "interquartile mean" if seeds > 3 else "mean"
    parts = [f"{seeds} seeds: {middle} of the seeds' means, 95 % bootstrap intervals over seeds"]
    parts[0] += "; the interval of a metric stands in brackets behind its end." if metrics else "."
    fewer = [f"{name} on {task} {len(curve.runs)}" for task, name, curve in found if len(curve.runs) < seeds]
    if fewer:
        parts.append(f"Fewer seeds: {', '.join(fewer)}.")
    if any(len(curve.runs) == 1 for _, _, curve in found):
        parts.append("Where there is one seed, there is no interval.")
    return " ".join(parts)


def judge_note(summary: Curves) -> str | None:
    """Say what the gold judge's table shows; None if there is none."""
    if JUDGE not in metric_names(summary):
        return None
    return (
        "Share of pictures that the gold judge finds right, before to after. It is a detector that no reward uses; all "
        "kinds together are the mean of the kinds, as in GenEval."
    )


def score_note(found: Aggregate) -> str:
    """Say what the scores are made of: tasks with their scales, seeds, and what is left out."""
    scales = "; ".join(f"{task}: {scale}" for task, scale in found.scales.items())
    seeds = ", ".join(map(str, found.seeds))
    left_out = f" Not counted, because not every algorithm has finished that task or seed: {', '.join(found.left_out)}."
    return f"{scales}. Seeds {seeds}.{left_out if found.left_out else ''}"


def shared_note(summary: Curves) -> str | None:
    """Say why nothing is pooled over tasks, if it is not."""
    tasks = shared(summary)
    if not tasks:
        return None
    return (
        f"Nothing is pooled over tasks, because some runs belong to several of them ({', '.join(tasks)}): counted "
        "twice, they would make intervals too narrow."
    )


def failure_note(results: Results) -> str | None:
    """Name the runs that failed and are in no number; None if none did."""
    if not results.failures:
        return None
    failed = "; ".join(escaped(f"{name} ({error})") for name, error in results.failures.items())
    return f"Failed, and in no number: {failed}."
