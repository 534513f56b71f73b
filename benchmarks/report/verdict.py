"""The page's first screen: for each task one sentence, what was reached at equal quality, and three small pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.origin import at_evaluation, of_metric, of_reward
from benchmarks.analysis.results import Results
from benchmarks.analysis.table import Cell, Name, Number
from benchmarks.analysis.units import Unit, unit_of
from benchmarks.analysis.verdict import Quality, Verdict
from benchmarks.report.gallery import data_url, images_of, is_exact, picked, rows_of, shown_size, shrunk
from benchmarks.runs.pictures import dispensable, grid
from benchmarks.runs.record import Run
from diffusion_gym.choices import EXACT_MODELS

_TILES = 4  # pictures of a thumbnail, two by two
_FEW = 4  # algorithms that are named one by one where none reaches a level


def cards(found: Sequence[Verdict], summary: Curves, results: Results, folder: Path) -> list[dict[str, Any]]:
    """Return for the page, of each task: its name, its sentences, and the winner's pictures."""
    runs = {(run.task, run.variant): (run, indices) for run, indices in rows_of(results, folder)}
    return [
        {
            "task": verdict.task,
            "sentence": _sentence(verdict, summary[verdict.task]),
            "equal": _at_equal_quality(verdict, summary[verdict.task]),
            "winner": verdict.winner,
            "pictures": _thumbnails(verdict, folder, *runs[verdict.task, verdict.winner])
            if (verdict.task, verdict.winner) in runs
            else [],
        }
        for verdict in found
    ]


def one_seed_note(summary: Curves) -> str | None:
    """Say what one seed leaves open; None where there are several algorithms with several seeds, or one algorithm."""
    alone = [curve for by_variant in summary.values() if len(by_variant) > 1 for curve in by_variant.values()]
    if alone and all(len(curve.runs) == 1 for curve in alone):
        return "One seed of each algorithm: with another one their order may be different where they are close."
    return None


def _sentence(verdict: Verdict, by_variant: Mapping[str, Curve]) -> Cell:
    """Return who is first, from where to where, and what became of the pictures."""
    name, curve = verdict.winner, by_variant[verdict.winner]
    several = len(by_variant) > 1
    if all(len(one.reward) == 1 for one in by_variant.values()):
        unit = unit_of(curve)
        first = Number(unit.text(curve.reward[0].estimate), of_reward(curve, 0))
        return ["nothing has been evaluated after training yet; before it: ", first, f"{unit.name}."]
    head: list[str | Number | Name] = [Name(name)]
    if not verdict.gained:
        head = (
            ["no algorithm ends above the untuned model; nearest is ", *head] if several else [*head, " gains nothing"]
        )
        head.append(", ")
    else:
        head.append(" first, " if several else ": ")
    if not verdict.finished:
        head.insert(0, "so far ")
    return [*head, *_change(curve, unit_of(curve)), *_ahead(verdict), *_cost(verdict.quality.get(name), curve), "."]


def _change(curve: Curve, unit: Unit) -> Cell:
    """Return the reward at the start and at the end, and by how much of the start it changed."""
    end = len(curve.reward) - 1
    start, final = (unit.of(curve.reward[at]).estimate for at in (0, end))
    first, last = (Number(unit.text(curve.reward[at].estimate), of_reward(curve, at)) for at in (0, end))
    change = f" ({_signed(final / start - 1)})" if start > 0 else ""
    return [first, " → ", last, f"{unit.name}{change}"]


def _signed(change: float) -> str:
    return ("+" if change >= 0 else "\N{MINUS SIGN}") + percent(abs(change))


def _ahead(verdict: Verdict) -> Cell:
    if not verdict.comparable:
        return [" (not all had the same reward queries and evaluation)"]
    if verdict.ahead is None or not verdict.gained:
        return []
    return [", above ", Name(verdict.ranking[1]), f" in {verdict.ahead.better} of {verdict.ahead.seeds} seeds"]


def _cost(quality: Quality | None, curve: Curve) -> Cell:
    if quality is None:
        return []
    return [f"; {what(quality)} ", *quality_cell(curve, quality)]


def quality_cell(curve: Curve, quality: Quality) -> Cell:
    """Return a quality at the start and at the end."""
    first, last = (
        Number(percent(quality.values[at].estimate), of_metric(curve, at, quality.metric, quality.held_out))
        for at in (0, len(quality.values) - 1)
    )
    return [first, " → ", last]


def what(quality: Quality) -> str:
    """Return what a quality says of the pictures."""
    if quality.is_price:
        return "animals recognised"
    return "right by the gold judge" + (" on held-out prompts" if quality.held_out else "")


def percent(share: float) -> str:
    """Return a share as a person reads it."""
    return f"{share:.0%}".replace("%", "\N{NO-BREAK SPACE}%")


def _at_equal_quality(verdict: Verdict, by_variant: Mapping[str, Curve]) -> Cell:
    """Return each algorithm's reward at the same quality, and when to stop there; nothing if none can be compared."""
    if not verdict.quality and verdict.gained:
        draws = by_variant[verdict.winner].specs[0].task.model not in EXACT_MODELS
        return ["What it cost the pictures was not measured."] if draws else []
    if verdict.level is None:
        return []
    quality = verdict.quality[verdict.winner]
    reached = [name for name in verdict.stops if not quality.is_price or verdict.stops[name].queries > 0]
    order = sorted(reached, key=lambda n: -verdict.stops[n].reward if quality.is_price else verdict.stops[n].queries)
    pieces: list[str | Number | Name] = []
    for name in order:
        stop, curve = verdict.stops[name], by_variant[name]
        unit, near = unit_of(curve), f"{round(stop.queries, -1):,.0f} queries"
        when = "at the end" if stop.place == len(curve.queries) - 1 else f"near {near}"
        how = f"between two evaluations, interpolated linearly where it is {percent(verdict.level)}"
        number = Number(unit.text(stop.reward), at_evaluation(curve, int(stop.place), "rewards", how))
        pieces += [", " if pieces else "", Name(name)]
        if quality.is_price:
            pieces += [" ", number, f"{unit.name} ({'stop ' if name == order[0] else ''}{when})"]
        else:
            pieces += [f" {when} (reward ", number, ")"]
    others = [name for name in verdict.ranking if name in verdict.quality and name not in reached]
    if others:
        named = ", ".join(others) if len(others) <= _FEW else f"{len(others)} others"
        missed = "no gain at that level: " if quality.is_price else "never: "
        pieces.append(f"{'; ' if pieces else ''}{missed}{named}")
    return [f"At {percent(verdict.level)} {'recognised' if quality.is_price else 'right'}: ", *pieces, "."]


def _thumbnails(verdict: Verdict, folder: Path, run: Run, indices: Sequence[int]) -> list[dict[str, str]]:
    """Return the winner's pictures before, at its best between start and end (or halfway), and at the end."""
    shown = [(indices[0], "before")]
    queries = [run.evaluations[index].costs["reward_queries"] for index in indices]
    if len(indices) > 2:
        stop = verdict.best.get(verdict.winner)
        aim = queries[-1] / 2 if stop is None else stop
        middle = min(range(len(indices)), key=lambda at: abs(queries[at] - aim))
        is_best = stop is not None and 0 < middle < len(indices) - 1
        middle = (
            middle if is_best else min(range(1, len(indices) - 1), key=lambda at: abs(queries[at] - queries[-1] / 2))
        )
        shown.append((indices[middle], f"{'best' if is_best else 'halfway'}, {queries[middle]:,.0f} queries"))
    if len(indices) > 1:
        shown.append((indices[-1], f"end, {queries[-1]:,.0f} queries"))
    found = []
    for index, label in shown:
        with dispensable(f"the pictures of {run.name}, {label}"):
            images = shrunk(images_of(folder, run, run.evaluations[index], picked(run, _TILES)), shown_size(run))
            picture = data_url(grid(images, 2), is_exact(run))
            alt = f"{len(images)} pictures of {run.variant} tuned for {run.task}, {label}"
            found.append({"label": label, "picture": picture, "alt": alt})
    return found
