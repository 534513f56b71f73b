"""The hacking suite's tables, on curves made by hand: gold against the proxy, what is kept, and where stops stop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.analysis.curves import Curves, curves
from benchmarks.analysis.gold import gold_curve
from benchmarks.analysis.hacking import STOPS, gold_runs, reward_kept, stops
from benchmarks.analysis.hacking_tables import answer, gold_table, kept_table, remedy_table, signs_table, stop_table
from benchmarks.analysis.results import Results, write_results
from benchmarks.analysis.stopped import stopped_table
from benchmarks.analysis.table import Table
from benchmarks.hacking.judged import committed_runs
from benchmarks.report.figures import figures
from benchmarks.runs.record import Run
from benchmarks.suite import SUITES
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
    assert [cell.split(" ")[0] for cell in plain] == ["ddpo-is", "1", "0.00", "1.00", "0.25", "0.50", ""]
    assert [cell.split(" ")[0] for cell in floor] == ["ddpo-is-floor", "1", "0.95", "0.50", "0.50", "0.50", "+0.00"]
    assert "stopped there: no sure difference: `ddpo-is-floor`." in answer(summary)


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


def test_panels_with_different_lines_have_their_own_legends() -> None:
    """A scale that they share would give a line another's colour."""
    other = pushed([1.0, 0.9], task="compressibility", reward="compressibility", variant="branched")
    assert figures(curves(gold_runs([*suite(), other])))["frontier-gold"]["resolve"]["scale"]["color"] == "independent"
    same = pushed([1.0, 0.9], task="compressibility", reward="compressibility")
    assert "resolve" not in figures(curves(gold_runs([suite()[0], same])))["frontier-gold"]


def test_a_stopped_run_stands_beside_the_plain_run_of_its_seed(tmp_path: Path) -> None:
    """One seed early, exporting its second evaluation; the other goes to its end. A lone run has no row."""
    runs = []
    for seed, early in ((5, True), (6, False)):
        gold, reward = [1.0, 0.9, 0.6, 0.2], [1.0, 2.0, 3.0, 4.0]
        runs.append(pushed(gold, reward, seed=seed))
        stopped = pushed(
            gold[:3] if early else gold, reward[:3] if early else reward, variant="ddpo-is-stopped", seed=seed
        )
        best = {"metric": "reward", "value": 2.0, "iteration": 1}
        runs.append(
            replace(stopped, stopped_early="the log shows", best=best) if early else replace(stopped, best=best)
        )
    runs.append(pushed([1.0, 0.5], variant="branched-stopped", seed=5))
    (row,) = rows(stopped_table(runs))
    assert row[:5] == ["incompressibility", "ddpo-is", "1 of 2", "320", "256"]  # 256 and 384; 128 and 384
    assert row[5:] == [
        "0.55 (0.20 to 0.90)", "1.00 (1.00 to 1.00)", "0.20 (0.20 to 0.20)", "3.00 (2.00 to 4.00)",
        "4.00 (4.00 to 4.00)",
    ]  # fmt: skip
    assert stopped_table(runs[-1:]) is None


def test_the_stopped_suite_is_a_test_alone(tmp_path: Path) -> None:
    """Its seeds are nobody else's, its variants differ in nothing but the stop, and detectors leave its runs out."""
    seeds = {name: set(suite.seeds) for name, suite in SUITES.items()}
    assert not seeds["stopped"] & set.union(*(found for name, found in seeds.items() if name != "stopped"))
    suite = SUITES["stopped"]
    plan = suite.plan(list(suite.comparisons), suite.variants)
    assert len(plan) == 3 * 4 * 3
    for name, spec in plan.items():
        task, variant, seed = name.split("/")
        plain = plan[f"{task}/{variant.removesuffix('-stopped')}/{seed}"]
        assert replace(spec, safeguards=plain.safeguards) == plain
        assert spec.safeguards.stop_when_hacked == (spec is not plain)
    for name in ("hacking", "stopped"):
        (tmp_path / name).mkdir()
        run = replace(pushed([1.0, 0.9, 0.8, 0.7, 0.6], images=2, variant=name), prompts=["cat", "cat"])
        write_results(Results([run]), tmp_path / name / "results.json")
    assert [run.name for run in committed_runs(tmp_path)] == ["incompressibility/hacking/seed-0"]
