"""The hacking suite's tables, on curves made by hand: gold against the proxy, what is kept, and where stops stop."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.analysis.curves import Curves, curves
from benchmarks.analysis.gold import gold_curve
from benchmarks.analysis.hacking import STOPS, gold_runs, reward_kept, stops
from benchmarks.analysis.hacking_tables import answer, gold_table, kept_table, remedy_table, signs_table, stop_table
from benchmarks.analysis.table import Table
from benchmarks.report.figures import figures
from benchmarks.runs.record import Run
from tests.builders.pushed import pushed

FLOOR = "incompressibility:normalise,clip_score:floor=58:normalise:2"


def rows(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.markdown().splitlines()[2:]]


def suite() -> list[Run]:
    """Return plain DDPO-IS, which gains 2 and loses everything, and one with a floor, which gains 1 and loses less."""
    runs = []
    for seed in (0, 1):
        runs.append(pushed([1.0, 0.8, 0.4, 0.0], [1, 2, 2.5, 3], seed=seed))
        floor = {"incompressibility": [1, 1.5, 1.75, 2.0], "clip_score": [60.0] * 4}
        run = pushed([1.0, 1.0, 0.96, 0.95], [0, 1, 2, 3], reward=FLOOR, seed=seed, parts=floor)
        runs.append(replace(run, task="incompressibility-floor", variant="ddpo-is-floor"))
    return runs


def found() -> Curves:
    return curves(gold_runs(suite()))


def test_several_rewards_stand_beside_the_first_alone() -> None:
    """Longer runs of other suites are cut to the evaluations that all have; other tasks are left out."""
    longer = pushed([1.0, 0.9, 0.8, 0.7, 0.6], [1, 2, 3, 4, 5], variant="branched")
    other = pushed([1.0, 0.9], task="vlm_alignment", reward="vlm_alignment")
    summary = curves(gold_runs([*suite(), longer, other]))
    assert list(summary) == ["incompressibility"]
    assert list(summary["incompressibility"]) == ["ddpo-is", "ddpo-is-floor", "branched"]
    floor, cut = (summary["incompressibility"][name] for name in ("ddpo-is-floor", "branched"))
    assert list(floor.by_run[0]) == [1, 1.5, 1.75, 2]
    assert list(cut.queries) == [0, 128, 256, 384]
    (panel,) = [figure for name, figure in figures(summary).items() if name == "frontier-gold"]
    assert len(panel["data"]["values"]) == 12


def test_reward_is_kept_until_gold_falls_between_two_evaluations() -> None:
    run = gold_curve(pushed([1.0, 0.8, 0.4, 0.9], [1, 2, 3, 9]))
    assert run is not None
    assert reward_kept(run, 0.9) == (pytest.approx(1.5), True)  # not 9: what comes after the fall does not count
    assert reward_kept(run, 0.6) == (pytest.approx(2.5), True)
    assert reward_kept(run, 0.3) == (9, False)


def test_tables_by_hand() -> None:
    summary = found()
    plain, floor = rows(gold_table(summary))
    assert plain[2:] == ["1.00", "1.00", "0", "0.00 (0.00 to 0.00)", "2 of 2", "128", "1.00", "3.00 (3.00 to 3.00)"]
    assert floor[5:8] == ["0.95 (0.95 to 0.95)", "0 of 2", ""]
    plain, floor = rows(kept_table(summary))
    assert plain[2:5] == ["1.00", "1.50 (1.50 to 1.50)", "0 of 2"]
    assert floor[3:5] == ["2.00 (2.00 to 2.00)", "2 of 2"]
    plain, floor = rows(remedy_table(summary))
    assert [cell.split(" ")[0] for cell in plain] == ["ddpo-is", "1", "0.00", "1.00", "0.25", "0.50"]
    assert [cell.split(" ")[0] for cell in floor] == ["ddpo-is-floor", "1", "0.95", "0.50", "0.50", "0.50"]
    assert "`ddpo-is-floor` 95% for 50%." in answer(summary)
    assert "`ddpo-is-floor` +0.00 (0.00 to 0.00), no sure difference." in answer(summary)


def test_stops_by_hand() -> None:
    way = pushed([1.0, 0.9, 0.5, 0.2], [1, 2, 2, 1.5])
    run = replace(
        way,
        evaluations=[
            replace(line, metrics={**line.metrics, "clip_score": clip, "kl_to_start": kl})
            for line, clip, kl in zip(way.evaluations, (60, 58, 57, 61), (0, 9, 30, 50), strict=True)
        ],
    )
    curve = curves(gold_runs([run]))["incompressibility"]["ddpo-is"]
    assert [stops(curve, stop) for stop in STOPS.values()] == [([3], 0), ([2], 1), ([2], 1)]
    end, clip, kl = rows(stop_table({"incompressibility": {"ddpo-is": curve}}, ["ddpo-is"]))
    assert end[2:] == ["none: the end", "", "384", "0.20", "1.50"]
    assert clip[3:] == kl[3:] == ["1 of 1", "256", "0.50", "2.00"]
    assert STOPS["KL above 20"]({"reward": np.ones(3)}) is None  # not measured


def test_signs_at_the_start_the_fall_and_the_end() -> None:
    start, fall, end = rows(signs_table(found(), "ddpo-is", ["clip_score"]))
    assert start[1:] == ["start", "0", "1.00", "", "1.00"]
    assert fall[1:] == ["gold has fallen", "128", "2.00", "", "0.80"]
    assert end[1:] == ["end", "384", "3.00", "", "0.00"]
    assert signs_table(found(), "ddpo-is-floor", []) is None
