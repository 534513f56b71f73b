"""The page's tables: a short one, and one of all that was measured without what is the same for all."""

from collections.abc import Sequence

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.origin import of_cost, of_reward
from benchmarks.analysis.table import Cell, Column, Name, Number, Table
from benchmarks.analysis.tables import flat, has_seeds, over_seeds, overall_metric_names, peak_table, start_to_end
from benchmarks.analysis.units import unit_of
from benchmarks.analysis.verdict import Verdict
from benchmarks.report.verdict import quality_cell, what
from benchmarks.runs.metrics import OF_PIXELS

_TASK, _ALGORITHM = Column("task", is_text=True), Column("algorithm", is_text=True)
_COSTS = {"reward_queries": "queries", "forward_equivalents": "forwards", "seconds": "seconds"}


def short_table(summary: Curves, found: Sequence[Verdict]) -> Table:
    """Return each algorithm's reward before and after, and what became of the pictures, the best first."""
    qualities = dict.fromkeys(what(one) for verdict in found for one in verdict.quality.values())
    seeds = has_seeds(summary)
    titles = ["before", "after", *(["95 % interval over seeds"] if seeds else []), *qualities]
    rows: list[list[Cell]] = []
    for verdict in found:
        for name in verdict.ranking:
            curve = summary[verdict.task][name]
            cells: list[Cell] = [_reward(curve, 0), _reward(curve, len(curve.reward) - 1)]
            if seeds:
                cells.append(over_seeds(unit_of(curve).of(curve.reward[-1]), 2))
            measured = verdict.quality.get(name)
            cells += [
                quality_cell(curve, measured) if measured and what(measured) == each else [] for each in qualities
            ]
            rows.append([[verdict.task], [Name(name)], *cells])
    return Table([_TASK, _ALGORITHM, *map(Column, titles)], rows)


def _reward(curve: Curve, at: int) -> Cell:
    unit = unit_of(curve)
    return [Number(unit.text(curve.reward[at].estimate), of_reward(curve, at)), unit.name]


def measured_table(summary: Curves) -> tuple[Table | None, str]:
    """Return costs and metrics of every algorithm, without columns that are always the same, and a sentence of those.

    The table is None where no column is left.
    """
    names = overall_metric_names(summary)
    curves = flat(summary)
    columns = {title: [_cost(curve, cost, title) for _, _, curve in curves] for cost, title in _COSTS.items()}
    for name in names:
        columns[name] = [start_to_end(curve, name) if name in curve.metrics else [] for _, _, curve in curves]
    same = [title for title, cells in columns.items() if len({_shown(cell) for cell in cells}) == 1 and len(curves) > 1]
    left = [title for title in columns if title not in same]
    said = ", ".join(f"{_shown(columns[title][0])} {title}" for title in same)
    sentence = f"All had {said}." if said else ""
    if not left:
        return None, sentence
    rows: list[list[Cell]] = [
        [[task], [Name(variant)], *(columns[title][index] for title in left)]
        for index, (task, variant, _) in enumerate(curves)
    ]
    return Table([_TASK, _ALGORITHM, *map(Column, left)], rows), sentence


def _cost(curve: Curve, cost: str, title: str) -> Cell:
    values = {"queries": curve.queries, "forwards": curve.forwards, "seconds": curve.times}[title]
    return [Number(f"{values[-1]:,.0f}", of_cost(curve, len(values) - 1, cost))]


def _shown(cell: Cell) -> str:
    return "".join(piece if isinstance(piece, str) else piece.text for piece in cell)


def fallen_table(summary: Curves) -> Table | None:
    """Return the metrics whose best moment is after the start and before the end; None if there is none."""
    names = [name for name in overall_metric_names(summary) if name not in OF_PIXELS]
    return peak_table(summary, names, only_passed=True)
