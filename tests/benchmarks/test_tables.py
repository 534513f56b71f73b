"""The documentation's tables are its results': the committed pages, and pages made here of small results."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorithms import ALGORITHMS
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.analysis.aggregate import Ahead, aggregate, improvement, improvements, shared
from benchmarks.analysis.curves import check_one_comparison, curves
from benchmarks.analysis.notes import failure_note, interval_note, score_note
from benchmarks.analysis.reach import reach, reach_table
from benchmarks.analysis.results import Results, read_results, write_results
from benchmarks.analysis.statistics import pooled_interquartile_mean, stratified_bootstrap
from benchmarks.analysis.table import Number, Table
from benchmarks.analysis.tables import (
    equal_reward_table,
    held_out_table,
    improvement_table,
    judge_table,
    peak_table,
    result_table,
    score_table,
)
from benchmarks.commands.compare import summary_text
from benchmarks.docs_tables.blocks import Block
from benchmarks.docs_tables.command import blocks
from benchmarks.docs_tables.results import Committed
from benchmarks.report.charts import evaluation_charts
from benchmarks.report.figures import probabilities
from benchmarks.runs.record import Evaluation, Run, Scores
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.suite import CLAIMS

DOCS = Path(__file__).parents[2] / "docs"


def made(finals: dict[str, dict[str, list[float]]]) -> Results:
    """Return results with one run per number: task -> variant -> rewards at the end, from 1 at the start."""
    runs = []
    for steps, (task, by_variant) in enumerate(finals.items(), 2):
        config = TaskConfig(model="exact-gaussian", reward="exact-linear", num_inference_steps=steps)
        for rate, (variant, rewards) in enumerate(by_variant.items(), 1):
            for seed, reward in enumerate(rewards):
                lines = []
                for queries, mean, seen in ((0, 1.0, 0.5), (64, (1 + reward) / 2, 0.9), (128, reward, 0.1)):
                    costs = {"reward_queries": queries, "forward_equivalents": 37 * queries, "images": queries}
                    costs = {**costs, "seconds": float(seed)}
                    scores: dict[str, Any] = {"rewards": [mean - 0.5, mean + 0.5], "metrics": {"recognised": seen}}
                    lines.append(Evaluation(iteration=queries // 64, costs=costs, **scores))
                changes = {"seed": seed, "images_per_iteration": 64, "learning_rate": rate / 1000}
                spec = RunSpec("ddpo-is", override(ALGORITHMS["ddpo-is"].config, **changes), config, 128)
                by = {"processor": "a CPU"}
                folder = f"{task}/{variant}/seed-{seed}"
                runs.append(Run(task, variant, spec, True, lines, lines[-1].costs, by, (3, 4, 4), [], folder))
    return Results(runs, {"processor": "a CPU"})


def changed(results: Results, change: Callable[[int, Run], dict[str, Any]]) -> Results:
    """Return results whose runs have the fields that ``change`` says of a run and its index."""
    return replace(results, runs=[replace(run, **change(index, run)) for index, run in enumerate(results.runs)])


def text(table: Table | None) -> str:
    assert table is not None
    return table.markdown()


def first_line(run: Run, **scores: Any) -> dict[str, Any]:
    return {"evaluations": [replace(run.evaluations[0], **scores), *run.evaluations[1:]]}


RESULTS = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0]}, "square": {"a": [11.0, 11.0], "b": [1.0, 1.0]}})


def test_scores_put_tasks_on_one_scale() -> None:
    """0 is the start, 1 the best gain of an interquartile mean (of two seeds the mean): 2.5 and 10."""
    found = aggregate(curves(RESULTS.runs))
    assert found is not None
    assert {task: (scale.starts, scale.unit) for task, scale in found.scales.items()} == {
        "line": ({"a": 1.0, "b": 1.0}, 2.5),
        "square": ({"a": 1.0, "b": 1.0}, 10.0),
    }
    assert score_note(found) == (
        "line: 0 is a reward of 1.000, 1 is 3.500; square: 0 is a reward of 1.000, 1 is 11.000. Seeds 0, 1."
    )
    # Scores of a: 0.8, 1.2, 1, 1; of b: 0.4, 0.8, 0, 0. Of four, one is cut at each end.
    assert found.scores["a"].estimate == pytest.approx(1.0)
    assert found.scores["b"].estimate == pytest.approx((0.0 + 0.4) / 2)
    assert found.efficiency["a"][0] == [0, 64, 128]
    assert [score.estimate for score in found.efficiency["a"][1]] == pytest.approx([0.0, 0.5, 1.0])
    assert (found.means["a"].estimate, found.means["b"].estimate) == pytest.approx((1.0, 0.3))
    # What is above 1 does not make up for what is below.
    assert (found.gaps["a"].estimate, found.gaps["b"].estimate) == pytest.approx((0.05, 0.7))
    # Of b one run in four is above 0.25, 0.5 and 0.75 each, but for 0.4 > 0.25.
    (row,) = [
        line for line in score_table(found, curves(RESULTS.runs)).markdown().splitlines() if line.startswith("| b |")
    ]
    assert [row.split(" | ")[i] for i in (1, 3, 5)] == ["0.20", "0.30", "0.70"]
    assert row.endswith("| 0.50 | 0.25 | 0.25 |")
    assert found.left_out == []


def test_only_seeds_that_all_have_on_every_task_are_counted() -> None:
    """Else a task with fewer seeds would weigh less, and a variant that lost its hard runs would look better."""
    finals = {"line": {"a": [3.0, 4.0, 5.0], "b": [2.0, 3.0, 9.0]}, "square": {"a": [11.0, 11.0], "b": [1.0, 1.0]}}
    found = aggregate(curves(made(finals).runs))
    whole = aggregate(curves(RESULTS.runs))
    assert found is not None
    assert whole is not None
    assert (found.seeds, found.scores) == ([0, 1], whole.scores)
    assert found.left_out == ["line/a/seed-2", "line/b/seed-2"]
    assert "Not counted, because not every algorithm has finished that task or seed: line/a/seed-2" in score_note(found)
    fewer = aggregate(curves(made({**finals, "square": {**finals["square"], "c": [5.0, 5.0]}}).runs))
    assert fewer is not None
    assert fewer.variants == ["a", "b"]
    assert set(fewer.left_out) >= {"square/c/seed-0", "square/c/seed-1"}


def test_runs_on_the_way_are_not_compared_with_finished_ones() -> None:
    """Half of the budget is not its end; a variant of which something is finished is compared by that."""
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0], "c": [2.0, 3.0]}})
    unfinished = {"complete": False}
    results = changed(
        results, lambda index, run: {**unfinished, "evaluations": run.evaluations[:2]} if index > 3 else {}
    )
    found = aggregate(curves(results.runs))
    assert found is not None
    assert found.variants == ["a", "b"]
    assert found.left_out == ["line/c/seed-0", "line/c/seed-1"]
    assert {(pair.better, pair.worse) for pair in improvements(curves(results.runs))} == {("a", "b")}
    results = changed(results, lambda index, _: unfinished if index == 2 else {})
    assert curves(results.runs)["line"]["b"].seeds == [1]
    assert aggregate(curves(results.runs)) is None


def test_variants_on_other_terms_are_not_compared() -> None:
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0]}})
    results = changed(results, lambda index, run: {"spec": replace(run.spec, reward_queries=64 if index > 1 else 128)})
    assert aggregate(curves(results.runs)) is None
    assert improvements(curves(results.runs)) == []
    with pytest.raises(ValueError, match=r"runs of a and b on line differ .* reward queries \(128 and 64\)"):
        check_one_comparison("line", [(run.variant, run.spec) for run in results.runs])


def test_scores_of_different_starts_are_gains() -> None:
    """Two base models: 1 to 3 and 1 to 4, and 2 to 3 and 2 to 4, on which the same ends are smaller gains."""
    results = made({"line": {"a": [3.0, 4.0], "b": [3.0, 4.0]}})
    results = changed(results, lambda index, run: first_line(run, rewards=[1.5, 2.5]) if index > 1 else {})
    found = aggregate(curves(results.runs))
    assert found is not None
    assert (found.means["a"].estimate, found.means["b"].estimate) == pytest.approx((1.0, 0.6))
    assert "0 is each algorithm's own start, 1 a gain of 2.500" in score_note(found)


def test_what_fails_and_what_is_missing_is_named() -> None:
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0]}})
    assert interval_note(curves(results.runs)).startswith(
        "2 seeds: mean of the seeds' means, 95 % bootstrap intervals over seeds; the interval of a metric stands "
        "in brackets behind its end. Fewer seeds: b on line 1. Where there"
    )
    assert failure_note(results) is None
    assert failure_note(replace(results, failures={"line/b/seed-1": "NaN"})) == (
        "Failed, and in no number: line/b/seed-1 (NaN)."
    )


def test_improvement_counts_pairs_on_each_task() -> None:
    (found,) = improvements(curves(RESULTS.runs))
    assert (found.better, found.worse) == ("a", "b")
    # On the line 3 > 2, 4 > 2, 4 > 3, and 3 = 3 counts a half: 3.5 of 4.
    assert found.by_task["line"].estimate == pytest.approx(3.5 / 4)
    assert found.by_task["square"].estimate == 1.0
    assert found.together is not None
    assert found.together.estimate == pytest.approx((3.5 / 4 + 1) / 2)
    # Seed by seed 3 > 2 and 4 > 3: what pairs of any seeds leave open is plain where the noise is the same.
    assert found.ahead == {"line": Ahead(2, 0, 2), "square": Ahead(2, 0, 2)}
    table = improvement_table([found], curves(RESULTS.runs))
    assert table is not None
    assert "), 2 of 2 |" in table.markdown()
    turned = improvement(curves(RESULTS.runs), "b", "a")
    assert turned is not None
    assert turned.ahead["line"] == Ahead(0, 2, 2)
    assert turned.by_task["line"].estimate == pytest.approx(0.5 / 4)
    assert turned.by_task["line"].low <= 0.5 / 4 <= turned.by_task["line"].high


def measured(ends: list[float]) -> Results:
    """Return results of one variant, whose metric ends at these numbers, one a seed."""
    results = made({"line": {"a": [3.0] * len(ends)}})

    def end(index: int, run: Run) -> dict[str, Any]:
        last = replace(run.evaluations[-1], metrics={"recognised": ends[index]})
        return {"evaluations": [*run.evaluations[:-1], last]}

    return changed(results, end)


def test_peaks_are_each_runs_own() -> None:
    assert "| line | a | recognised | 0.50 | 0.90 | 64 | 0.10 (0.10 to 0.10) | 2 of 2 |" in text(
        peak_table(curves(RESULTS.runs), ["recognised"])
    )


def test_a_metric_of_several_seeds_has_an_interval() -> None:
    """Of five seeds the middle three are averaged: 0.2, not the mean 0.32, and the interval holds it."""
    ends = [0.0, 0.1, 0.2, 0.3, 1.0]
    found = curves(measured(ends).runs)["line"]["a"]
    value = found.metrics["recognised"][-1]
    assert value == found.peaks["recognised"].final
    assert (value.estimate, value.over) == (pytest.approx(0.2), "seeds")
    (alone,) = stratified_bootstrap([[np.array(ends)]], pooled_interquartile_mean)
    assert (value.low, value.high) == pytest.approx((alone.low, alone.high))
    assert f"| 0.50 to 0.20 ({alone.low:.2f} to {alone.high:.2f}) |" in text(result_table({"line": {"a": found}}))


def test_a_metric_of_one_seed_or_that_was_not_measured_has_no_interval() -> None:
    one = curves(measured([0.1]).runs)
    assert "| 0.50 to 0.10 |" in text(result_table(one))
    assert interval_note(one).startswith("One seed: a mean over evaluation images, without an interval.")
    assert "interval" not in text(result_table(one)), "one over images would be read as one over seeds"
    assert "| 0.50 to nan |" in text(result_table(curves(measured([0.1, math.nan, 0.3]).runs)))


def shared_runs() -> Results:
    """Return results in which both tasks hold the same two runs of a, each beside its own of b."""
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0]}, "again": {"a": [3.0, 4.0], "b": [5.0, 5.0]}})
    task = results.runs[0].spec.task  # both tasks are on equal terms

    def spec(index: int, run: Run) -> dict[str, Any]:
        config = override(run.spec.config, learning_rate=0.5) if index > 5 else run.spec.config
        return {"spec": replace(run.spec, task=task, config=config)}

    return changed(results, spec)


def test_nothing_is_pooled_over_tasks_that_share_runs() -> None:
    """Two claims of the suite paper-claims may hold the same runs, which would be counted twice."""
    summary = curves(shared_runs().runs)
    assert shared(summary) == ["line", "again"]
    assert aggregate(summary) is None
    (found,) = improvements(summary)
    assert found.together is None
    assert list(found.by_task) == ["line", "again"]
    # On the line 3.5 of 4 pairs are for a, on the other task none: b is ahead on average.
    assert (found.better, found.by_task["again"].estimate) == ("b", 1.0)
    assert [label for _, label, _ in probabilities(found)] == ["b > a, line", "b > a, again"]
    text = summary_text(shared_runs())
    assert "all tasks" not in text
    assert "optimality gap" not in text
    assert "because some runs belong to several of them (line, again)" in text
    assert shared(curves(RESULTS.runs)) == []
    assert "all tasks" in summary_text(RESULTS)
    assert "belong to several" not in summary_text(RESULTS)


def test_results_say_from_when_they_are(tmp_path: Path) -> None:
    """A day once, two days as a span, and how many runs carry none."""
    results = made({"line": {"a": [3.0, 4.0, 5.0]}})
    first, second, _ = (run.provenance for run in results.runs)
    said = []
    for dates in ([], [(first, "2026-11-24T09:00:00")], [(second, "2026-11-26T09:00:00")]):
        for provenance, date in dates:
            provenance["date"] = date
        write_results(results, tmp_path / "results" / "compare" / "results.json")
        said.append(
            Block.parse("compare/made").render(Committed(tmp_path, "compare")).split(";")[0].partition(" on ")[2]
        )
    assert said == [
        "a CPU",
        "a CPU, 2026-11-24 (2 carry no date)",
        "a CPU, 2026-11-24 to 2026-11-26 (1 carry no date)",
    ]


def test_there_is_a_share_of_a_gain_only_where_there_surely_is_one() -> None:
    """From 1: to 3 and 4 is a gain; one that the other seed loses may be none; a loss is none."""
    results = made({"line": {"gains": [3.0, 4.0], "may gain": [0.9, 1.2], "loses": [0.5, 0.6]}})

    def with_held_out(_: int, run: Run) -> dict[str, Any]:
        lines = []
        for line in run.evaluations:
            held_out = Scores(rewards=[(reward + 1) / 2 for reward in line.rewards], metrics={})
            lines.append(replace(line, held_out=held_out))
        return {"evaluations": lines}

    rows = text(held_out_table(curves(changed(results, with_held_out).runs))).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["gains", "may gain", "loses"]
    assert [row.split(" | ")[-1] for row in rows] == ["50% |", "no sure gain |", "no gain |"]


def test_variants_are_compared_at_equal_rewards() -> None:
    """a ends at 3.5, b at 2.5, which is 60 % of a's way: 77 of 128 queries, and 0.9 - 0.8 * 0.2 recognised."""
    lines = text(equal_reward_table(curves(RESULTS.runs), ["recognised", "unmeasured"], marks=2)).splitlines()
    assert lines[0] == "| task | reward | algorithm | queries | recognised |"
    assert lines[2:6] == [
        "| line | 1.750 | a | 38 | 0.74 |",
        "| line | 1.750 | b | 64 | 0.90 |",
        "| line | 2.500 | a | 77 | 0.74 |",
        "| line | 2.500 | b | 128 | 0.10 |",
    ]
    assert len(lines) == 6, "b does not rise on the second task, so nothing is equal there"


def test_what_a_variant_saves_at_equal_reward() -> None:
    """a has b's end of 2.5 after 76.8 of 128 queries, with 0.9 - 0.8 * 0.2 recognised where b has 0.1."""
    by_variant = curves(RESULTS.runs)["line"]
    found = reach(by_variant["a"], by_variant["b"], 128)
    assert found is not None
    assert found.reward == 2.5
    assert found.fewer_forwards.estimate == pytest.approx(found.fewer_queries.estimate)
    assert found.fewer_queries.estimate == pytest.approx(128 / 76.8)
    # The extremes: b's seed of 2.0 against a's of 4.0, and b's of 3.0 against a's of 3.0.
    assert (found.fewer_queries.low, found.fewer_queries.high) == (
        pytest.approx(1.0),
        pytest.approx(128 / (64 * 1 / 1.5)),
    )
    assert found.change["recognised"].estimate == pytest.approx(0.74 - 0.1)
    assert found.sure == 1

    other = reach(by_variant["b"], by_variant["a"], 128)
    assert other is not None
    assert (other.fewer_queries.estimate, other.sure) == (0.0, 0.0)
    assert reach(by_variant["a"], by_variant["b"], 100) is None, "not evaluated there"
    square = curves(RESULTS.runs)["square"]
    assert reach(square["a"], square["b"], 128) is None, "b does not rise"
    lines = text(reach_table(curves(RESULTS.runs), "a", 64, ["recognised"])).splitlines()
    assert lines[2].startswith("| line | 2.250 | b | 0.")


def test_runs_beside_a_suite_are_in_its_tables(tmp_path: Path) -> None:
    both = made({"line": {"a": [3.0], "b": [2.0]}, "task of paper alone": {"b": [2.0]}})
    for name, variants in {"modern": "a", "paper": "ab"}.items():
        runs = [run for run in both.runs if run.variant in variants]
        write_results(replace(both, runs=runs), tmp_path / "results" / name / "results.json")
    assert {name: len(curve.runs) for name, curve in Committed(tmp_path, "modern").curves["line"].items()} == {
        "a": 1,
        "b": 1,
    }
    assert set(Committed(tmp_path, "modern").curves) == {"line"}
    assert len(Committed(tmp_path, "modern").results.runs) == 1
    assert (
        "--results docs/results/modern/results.json docs/results/composition/results.json"
        in Committed(tmp_path, "modern").command()
    )


def test_one_seed_has_no_statistics_over_seeds() -> None:
    summary = curves(made({"line": {"a": [3.0], "b": [2.0, 3.0]}}).runs)
    assert aggregate(summary) is None
    assert improvements(summary) == []


def test_seeds_of_other_settings_are_not_put_together() -> None:
    results = changed(
        RESULTS,
        lambda index, run: {"spec": replace(run.spec, config=override(run.spec.config, max_grad_norm=index / 9 + 1))},
    )
    with pytest.raises(ValueError, match="a toward line differ in max_grad_norm"):
        curves(results.runs)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs" / "results" / "compare"
    folder.mkdir(parents=True)
    write_results(RESULTS, folder / "results.json")
    return tmp_path / "docs"


def test_tables_are_written_between_the_marks_and_checked(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = docs / "page.md"
    page.write_text(
        "Before.\n\n<!-- results: compare/rewards a -->\n<!-- end -->\n\nBetween.\n\n"
        "<!-- results: compare/figures profile -->\nold\n<!-- end -->\n\n"
        "<!-- results: paper/made -->\n<!-- end -->\n\nAfter.\n"
    )
    assert main(["tables", "--docs", str(docs), "--check"]) == 1
    assert "page.md is not what its results say" in capsys.readouterr().out
    assert main(["tables", "--docs", str(docs)]) == 0
    text = page.read_text()
    assert "| line | a | 1.000 | 3.500 |" in text
    assert "| b |" not in text
    assert "old" not in text
    assert "diffusion-gym compare --suite paper --results docs/results/paper/results.json" in text
    assert re.sub(r"<!-- results.*?<!-- end -->", "#", text, flags=re.DOTALL) == (
        "Before.\n\n#\n\nBetween.\n\n#\n\n#\n\nAfter.\n"
    )
    assert (docs / "results" / "compare" / "profile.svg").is_file()
    assert not (docs / "results" / "compare" / "reward-queries.svg").exists(), "no page shows it"
    assert main(["tables", "--docs", str(docs), "--check"]) == 0
    (docs / "results" / "compare" / "profile.svg").unlink()
    assert main(["tables", "--docs", str(docs), "--check"]) == 1
    assert "results/compare/profile.svg is shown, but there is no such file" in capsys.readouterr().out


def test_a_task_has_one_chart_and_a_table_of_few_columns(docs: Path) -> None:
    page = docs / "page.md"
    page.write_text("<!-- results: compare/task line recognised recognised held-out/judge -->\n<!-- end -->\n")
    assert main(["tables", "--docs", str(docs)]) == 0
    lines = page.read_text().splitlines()
    assert "![recognised-line](results/compare/recognised-line.svg)" in lines
    assert "| algorithm | reward | 95 % interval | recognised | judge, held out |" in lines
    assert "| a | 1.000 to 3.500 | 3.000 to 4.000 | 0.50 to 0.10 (0.10 to 0.10) |  |" in lines
    drawn = (docs / "results" / "compare" / "recognised-line.svg").read_text()
    assert ">line</text>" in drawn
    assert ">square</text>" not in drawn
    assert Block.parse("compare/task none reward").render(Committed(docs, "compare")) == "Not yet run."


@pytest.mark.parametrize("head", ["compare/beauty", "nowhere/rewards", "compare", "compare/task line"])
def test_unknown_blocks_are_refused(head: str) -> None:
    with pytest.raises(ValueError, match="expected NAME/"):
        Block.parse(head)


def test_committed_results_are_read_whole() -> None:
    """Nothing in a file is lost when it is read and written again; options that are newer get their defaults."""

    def lost(written: Any, before: Any) -> bool:
        if isinstance(before, dict):
            return any(key not in written or lost(written[key], value) for key, value in before.items())
        if isinstance(before, list):
            return len(written) != len(before) or any(map(lost, written, before))
        return json.dumps(written) != json.dumps(before)  # so that NaN is NaN

    for file in DOCS.glob("results/*/results.json"):
        results = read_results(file)
        written = json.loads(json.dumps(results.to_json()))
        assert not lost(written, json.loads(file.read_text(encoding="utf-8"))), file
        assert Run.from_json(written["runs"][0]) == results.runs[0]


def test_the_documentation_says_what_its_results_say() -> None:
    assert main(["tables", "--docs", str(DOCS), "--check"]) == 0


def test_the_gold_judge_has_a_table_of_kinds_on_trained_and_held_out_prompts(tmp_path: Path) -> None:
    """Two seeds: their mean, with their range in brackets; the result table has the overall score alone."""

    def judged(index: int, run: Run) -> dict[str, Any]:
        lines = [
            replace(
                line,
                metrics={"judge": place / 4, "judge-counting": place / 2},
                held_out=Scores(rewards=line.rewards, metrics={"judge": 0.5 + index / 10, "judge-counting": 0.25}),
            )
            for place, line in enumerate(run.evaluations)
        ]
        return {"evaluations": lines}

    results = changed(made({"geneval": {"a": [3.0, 4.0]}}), judged)
    summary = curves(results.runs)
    assert text(judge_table(summary)).splitlines() == [
        "| task | algorithm | prompts | all kinds | counting |",
        "|---|---|---|---|---|",
        "| geneval | a | trained | 0.00 to 0.50 (0.50 to 0.50) | 0.00 to 1.00 (1.00 to 1.00) |",
        "| geneval | a | held out | 0.55 to 0.55 (0.50 to 0.60) | 0.25 to 0.25 (0.25 to 0.25) |",
    ]
    assert text(result_table(summary)).splitlines()[0].endswith("| seconds | judge |")
    cell = judge_table(summary).rows[1][3][0]  # type: ignore[union-attr]
    assert isinstance(cell, Number)
    assert cell.origin.field == "held_out.metrics.judge"
    assert "all kinds together are the mean of the kinds" in summary_text(results)
    assert judge_table(curves(RESULTS.runs)) is None
    write_results(results, tmp_path / "results" / "composition" / "results.json")
    shown = Block.parse("composition/judge").render(Committed(tmp_path, "composition"))
    assert shown.startswith(text(judge_table(summary)))
    assert (
        Block.parse("composition/times").render(Committed(tmp_path, "composition")).startswith("A run's training took")
    )
    followed = Block.parse("composition/followed").render(Committed(tmp_path, "composition"))
    assert followed.splitlines()[2].endswith("| 0.00 to 0.50 (0.50 to 0.50) | 0.55 to 0.55 (0.50 to 0.60) |")
    names = {shown.chart.name: shown.figure for shown in evaluation_charts(summary)}
    assert names["held-out-judge-geneval"] == "held-out-judge"
    assert names["judge-counting-geneval"] == "judge-kinds"


def test_the_reasons_of_the_readme_say_what_its_results_say() -> None:
    """Its three numbers: right pictures of held-out prompts, the gain and cost of large files, and training's time."""
    readme = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    followed = Block.parse("follow/followed").render(Committed(DOCS, "follow")).splitlines()[2].split(" | ")[-1]
    before, after = (f"{100 * float(share):.0f} %" for share in re.findall(r"\d\.\d\d", followed)[:2])
    assert f"{after} of the pictures are right instead of {before}." in readme
    large = curves(read_results(DOCS / "results" / "compare" / "results.json").runs)["incompressibility"]["ddpo-is"]
    gain = large.reward[-1].estimate / large.reward[0].estimate - 1
    seen = [f"{100 * value.estimate:.0f} %" for value in large.metrics["recognised"]]
    assert f"files grow by {100 * gain:.0f} %" in readme
    assert f"recognised in {seen[-1]} of the pictures instead of {seen[0]} (" in readme
    measured = json.loads((DOCS / "results" / "throughput" / "emoji-animals.json").read_text(encoding="utf-8"))
    assert f"takes {100 * measured['training']['above_floor']:.1f} % longer" in readme


def test_every_claim_has_its_block() -> None:
    found = blocks((DOCS / "paper-claims.md").read_text(encoding="utf-8"))
    assert [block.words for block in found if block.kind == "claim"] == [(name,) for name in CLAIMS]


def test_a_claims_block_has_its_pairs_in_the_claims_order(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "paper-claims"
    folder.mkdir(parents=True)
    finals = {name: [2.0, 3.0] for name in CLAIMS["is-against-sf"].variants}
    write_results(made({"is-against-sf": finals}), folder / "results.json")
    text = Block.parse("paper-claims/claim is-against-sf").render(Committed(tmp_path, "paper-claims"))
    assert "| ddpo-is | ddpo-sf | 0.50 (" in text
    assert "--tasks is-against-sf --results docs/results/paper-claims/results.json docs/results/paper/" in text
    assert (
        Block.parse("paper-claims/claim overoptimisation")
        .render(Committed(tmp_path, "paper-claims"))
        .startswith("Not yet run.")
    )


def test_figures_that_one_seed_cannot_give_are_left_out(docs: Path) -> None:
    """A suite's first seed is a page already, though nothing can be said over seeds."""
    one = made({"line": {"a": [3.0], "b": [2.0]}, "square": {"a": [11.0], "b": [1.0]}})
    write_results(one, docs / "results" / "compare" / "results.json")
    page = docs / "page.md"
    page.write_text("<!-- results: compare/figures reward-queries efficiency profile improvement -->\n<!-- end -->\n")
    assert main(["tables", "--docs", str(docs)]) == 0
    assert re.findall(r"results/compare/([\w-]+)\.svg", page.read_text()) == ["reward-queries"]
    assert (docs / "results" / "compare" / "reward-queries.svg").is_file()
