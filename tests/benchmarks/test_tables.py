"""The documentation's tables are its results': the committed pages, and pages made here of small results."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.analysis.aggregate import Ahead, aggregate, improvement, improvements, shared
from benchmarks.analysis.curves import check_one_comparison, curves
from benchmarks.analysis.results import read_results, write_results
from benchmarks.analysis.statistics import pooled_interquartile_mean, stratified_bootstrap
from benchmarks.analysis.tables import (
    equal_reward_table,
    failure_note,
    held_out_table,
    improvement_table,
    interval_note,
    peak_table,
    score_note,
    score_table,
    table,
)
from benchmarks.commands.compare import summary_text
from benchmarks.docs_tables.blocks import Block
from benchmarks.docs_tables.command import blocks
from benchmarks.report.figures import probabilities
from benchmarks.suite import CLAIMS

DOCS = Path(__file__).parents[2] / "docs"


def made(finals: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Return results with one run a number: task -> variant -> rewards at the end, from 1 at the start."""
    runs = []
    for task, by_variant in finals.items():
        for variant, rewards in by_variant.items():
            for seed, reward in enumerate(rewards):
                lines = []
                for queries, mean, seen in ((0, 1.0, 0.5), (64, (1 + reward) / 2, 0.9), (128, reward, 0.1)):
                    costs = {"reward_queries": queries, "forward_equivalents": 37 * queries, "images": queries}
                    line = {"costs": {**costs, "seconds": float(seed)}, "rewards": [mean - 0.5, mean + 0.5]}
                    lines.append({**line, "metrics": {"recognised": seen}})
                config = {"seed": seed, "images_per_iteration": 64}
                spec = {"algorithm": variant, "config": config, "task": {"reward": task}, "reward_queries": 128}
                run = {"folder": f"{task}/{variant}/seed-{seed}", "task": task, "variant": variant, "complete": True}
                runs.append({**run, "spec": spec, "evaluations": lines, "provenance": {"processor": "a CPU"}})
    return {"provenance": {"processor": "a CPU"}, "runs": runs}


RESULTS = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0]}, "square": {"a": [11.0, 11.0], "b": [1.0, 1.0]}})


def test_scores_put_tasks_on_one_scale() -> None:
    """0 is the start, 1 the best gain of an interquartile mean (of two seeds the mean): 2.5 and 10."""
    found = aggregate(curves(RESULTS))
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
    (row,) = [line for line in score_table(found).splitlines() if line.startswith("| b |")]
    assert [row.split(" | ")[i] for i in (1, 3, 5)] == ["0.20", "0.30", "0.70"]
    assert row.endswith("| 0.50 | 0.25 | 0.25 |")
    assert found.left_out == []


def test_only_seeds_that_all_have_on_every_task_are_counted() -> None:
    """Else a task with fewer seeds would weigh less, and a variant that lost its hard runs would look better."""
    finals = {"line": {"a": [3.0, 4.0, 5.0], "b": [2.0, 3.0, 9.0]}, "square": {"a": [11.0, 11.0], "b": [1.0, 1.0]}}
    found = aggregate(curves(made(finals)))
    whole = aggregate(curves(RESULTS))
    assert found is not None
    assert whole is not None
    assert (found.seeds, found.scores) == ([0, 1], whole.scores)
    assert found.left_out == ["line/a/seed-2", "line/b/seed-2"]
    assert "Not counted, for not every algorithm has finished that task or seed: line/a/seed-2" in score_note(found)
    fewer = aggregate(curves(made({**finals, "square": {**finals["square"], "c": [5.0, 5.0]}})))
    assert fewer is not None
    assert fewer.variants == ["a", "b"]
    assert set(fewer.left_out) >= {"square/c/seed-0", "square/c/seed-1"}


def test_runs_on_the_way_are_not_compared_with_finished_ones() -> None:
    """Half of the budget is not its end; a variant of which something is finished is compared by that."""
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0], "c": [2.0, 3.0]}})
    for run in results["runs"][4:]:
        run["complete"] = False
        del run["evaluations"][2:]
    found = aggregate(curves(results))
    assert found is not None
    assert found.variants == ["a", "b"]
    assert found.left_out == ["line/c/seed-0", "line/c/seed-1"]
    assert {(pair.better, pair.worse) for pair in improvements(curves(results))} == {("a", "b")}
    results["runs"][2]["complete"] = False
    assert curves(results)["line"]["b"].seeds == [1]
    assert aggregate(curves(results)) is None


def test_variants_on_other_terms_are_not_compared() -> None:
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0]}})
    for run in results["runs"][2:]:
        run["spec"]["reward_queries"] = 64
    assert aggregate(curves(results)) is None
    assert improvements(curves(results)) == []
    with pytest.raises(ValueError, match=r"runs of a and b on line differ .* reward queries \(128 and 64\)"):
        check_one_comparison(results["runs"])


def test_scores_of_different_starts_are_gains() -> None:
    """Two base models: 1 to 3 and 1 to 4, and 2 to 3 and 2 to 4, on which the same ends are smaller gains."""
    results = made({"line": {"a": [3.0, 4.0], "b": [3.0, 4.0]}})
    for run in results["runs"][2:]:
        run["evaluations"][0]["rewards"] = [1.5, 2.5]
    found = aggregate(curves(results))
    assert found is not None
    assert (found.means["a"].estimate, found.means["b"].estimate) == pytest.approx((1.0, 0.6))
    assert "0 is each algorithm's own start, 1 a gain of 2.500" in score_note(found)


def test_what_fails_and_what_is_missing_is_named() -> None:
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0]}})
    assert interval_note(curves(results)).startswith(
        "2 seeds: mean of the seeds' means, 95 % bootstrap intervals over seeds; a metric's stands in brackets "
        "behind its end. Fewer seeds: b on line 1. Where there"
    )
    assert failure_note(results) is None
    assert failure_note({**results, "failures": {"line/b/seed-1": "NaN"}}) == (
        "Failed, and in no number: line/b/seed-1 (NaN)."
    )


def test_improvement_counts_pairs_on_each_task() -> None:
    (found,) = improvements(curves(RESULTS))
    assert (found.better, found.worse) == ("a", "b")
    # On the line 3 > 2, 4 > 2, 4 > 3, and 3 = 3 counts a half: 3.5 of 4.
    assert found.by_task["line"].estimate == pytest.approx(3.5 / 4)
    assert found.by_task["square"].estimate == 1.0
    assert found.together is not None
    assert found.together.estimate == pytest.approx((3.5 / 4 + 1) / 2)
    # Seed by seed 3 > 2 and 4 > 3: what pairs of any seeds leave open is plain where the noise is the same.
    assert found.ahead == {"line": Ahead(2, 0, 2), "square": Ahead(2, 0, 2)}
    assert "), 2 of 2 |" in str(improvement_table([found]))
    turned = improvement(curves(RESULTS), "b", "a")
    assert turned is not None
    assert turned.ahead["line"] == Ahead(0, 2, 2)
    assert turned.by_task["line"].estimate == pytest.approx(0.5 / 4)
    assert turned.by_task["line"].low <= 0.5 / 4 <= turned.by_task["line"].high


def measured(ends: list[float]) -> dict[str, Any]:
    """Return results of one variant, whose metric ends at these numbers, one a seed."""
    results = made({"line": {"a": [3.0] * len(ends)}})
    for run, end in zip(results["runs"], ends, strict=True):
        run["evaluations"][-1]["metrics"]["recognised"] = end
    return results


def test_peaks_are_each_runs_own() -> None:
    assert "| line | a | recognised | 0.50 | 0.90 | 64 | 0.10 (0.10 to 0.10) | 2 of 2 |" in str(
        peak_table(curves(RESULTS), ["recognised"])
    )


def test_a_metric_of_several_seeds_has_an_interval() -> None:
    """Of five seeds the middle three are averaged: 0.2, not the mean 0.32, and the interval holds it."""
    ends = [0.0, 0.1, 0.2, 0.3, 1.0]
    found = curves(measured(ends))["line"]["a"]
    value = found.metrics["recognised"][-1]
    assert value == found.peaks["recognised"].final
    assert (value.estimate, value.over) == (pytest.approx(0.2), "seeds")
    (alone,) = stratified_bootstrap([[np.array(ends)]], pooled_interquartile_mean)
    assert (value.low, value.high) == pytest.approx((alone.low, alone.high))
    assert f"| 0.50 to 0.20 ({alone.low:.2f} to {alone.high:.2f}) |" in table({"line": {"a": found}})


def test_a_metric_of_one_seed_or_that_was_not_measured_has_no_interval() -> None:
    one = curves(measured([0.1]))
    assert "| 0.50 to 0.10 |" in table(one)
    assert interval_note(one).endswith("A metric is one number of all images, without an interval.")
    assert "| 0.50 to nan |" in table(curves(measured([0.1, math.nan, 0.3])))


def shared_runs() -> dict[str, Any]:
    """Return results in which both tasks hold the same two runs of a, each beside its own of b."""
    results = made({"line": {"a": [3.0, 4.0], "b": [2.0, 3.0]}, "again": {"a": [3.0, 4.0], "b": [5.0, 5.0]}})
    for run, other in zip(results["runs"][:2], results["runs"][4:6], strict=True):
        other["spec"] = run["spec"]
    for run in results["runs"][6:]:
        run["spec"] |= {"task": {"reward": "line"}, "algorithm": "another"}
    return results


def test_nothing_is_pooled_over_tasks_that_share_runs() -> None:
    """Two claims of the suite paper-claims may hold the same runs, which would be counted twice."""
    summary = curves(shared_runs())
    assert shared(summary) == ["line", "again"]
    assert aggregate(summary) is None
    (found,) = improvements(summary)
    assert found.together is None
    assert list(found.by_task) == ["line", "again"]
    # On the line 3.5 of 4 pairs are for a, on the other task none: b is ahead on average.
    assert (found.better, found.by_task["again"].estimate) == ("b", 1.0)
    assert [label for _, label, _ in probabilities(found)] == ["b > a, again", "b > a, line"], "upward in the figure"
    text = summary_text(shared_runs())
    assert "all tasks" not in text
    assert "optimality gap" not in text
    assert "for some runs stand in several of them (line, again)" in text
    assert shared(curves(RESULTS)) == []
    assert "all tasks" in summary_text(RESULTS)
    assert "stand in several" not in summary_text(RESULTS)


def test_results_say_from_when_they_are(tmp_path: Path) -> None:
    """A day once, two days as a span, and how many runs carry none."""
    results = made({"line": {"a": [3.0, 4.0, 5.0]}})
    first, second, _ = (run["provenance"] for run in results["runs"])
    said = []
    for dates in ([], [(first, "2026-11-24T09:00:00")], [(second, "2026-11-26T09:00:00")]):
        for provenance, date in dates:
            provenance["date"] = date
        write_results(results, tmp_path / "results" / "compare" / "results.json")
        said.append(Block.parse("compare/made").render(tmp_path).split(";")[0].partition(" on ")[2])
    assert said == [
        "a CPU",
        "a CPU, 2026-11-24 (2 carry no date)",
        "a CPU, 2026-11-24 to 2026-11-26 (1 carry no date)",
    ]


def test_there_is_a_share_of_a_gain_only_where_there_surely_is_one() -> None:
    """From 1: to 3 and 4 is a gain; one that the other seed loses may be none; a loss is none."""
    results = made({"line": {"gains": [3.0, 4.0], "may gain": [0.9, 1.2], "loses": [0.5, 0.6]}})
    for run in results["runs"]:
        for line in run["evaluations"]:
            line["held_out"] = {"rewards": [(reward + 1) / 2 for reward in line["rewards"]], "metrics": {}}
    rows = str(held_out_table(curves(results))).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == ["gains", "may gain", "loses"]
    assert [row.split(" | ")[-1] for row in rows] == ["50% |", "no sure gain |", "no gain |"]


def test_variants_are_compared_at_equal_rewards() -> None:
    """a ends at 3.5, b at 2.5, which is 60 % of a's way: 77 of 128 queries, and 0.9 - 0.8 * 0.2 recognised."""
    lines = str(equal_reward_table(curves(RESULTS), ["recognised", "unmeasured"], marks=2)).splitlines()
    assert lines[0] == "| task | reward | algorithm | queries | recognised |"
    assert lines[2:6] == [
        "| line | 1.750 | a | 38 | 0.74 |",
        "| line | 1.750 | b | 64 | 0.90 |",
        "| line | 2.500 | a | 77 | 0.74 |",
        "| line | 2.500 | b | 128 | 0.10 |",
    ]
    assert len(lines) == 6, "b does not rise on the second task, so nothing is equal there"


def test_one_seed_has_no_statistics_over_seeds() -> None:
    summary = curves(made({"line": {"a": [3.0], "b": [2.0, 3.0]}}))
    assert aggregate(summary) is None
    assert improvements(summary) == []


def test_seeds_of_other_settings_are_not_put_together() -> None:
    results = json.loads(json.dumps(RESULTS))
    results["runs"][1]["spec"]["config"]["images_per_iteration"] = 128
    with pytest.raises(ValueError, match="a toward line differ in images_per_iteration"):
        curves(results)


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
    for suffix in ("png", "svg"):
        assert (docs / "results" / "compare" / f"profile.{suffix}").is_file()
        assert not (docs / "results" / "compare" / f"reward-queries.{suffix}").exists(), "no page shows it"
    assert main(["tables", "--docs", str(docs), "--check"]) == 0
    (docs / "results" / "compare" / "profile.svg").unlink()
    assert main(["tables", "--docs", str(docs), "--check"]) == 1
    assert "results/compare/profile.svg is shown and not there" in capsys.readouterr().out


@pytest.mark.parametrize("head", ["compare/beauty", "nowhere/rewards", "compare"])
def test_unknown_blocks_are_refused(head: str) -> None:
    with pytest.raises(ValueError, match="expected NAME/KIND"):
        Block.parse(head)


def test_the_documentation_says_what_its_results_say() -> None:
    assert main(["tables", "--docs", str(DOCS), "--check"]) == 0


def test_the_table_of_the_readme_says_what_its_results_say() -> None:
    """Columns of the results' rewards, without costs."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8").split("| task | algorithm |")[1]
    results = read_results(DOCS / "results" / "compare" / "results.json")
    for line in table(curves(results)).splitlines()[2:]:
        cells = line.strip("| ").split(" | ")
        recognised = cells[8].partition(" (")[0]
        assert f"\n| {' | '.join([*cells[:5], recognised])} |\n" in readme


def test_every_claim_has_its_block() -> None:
    found = blocks((DOCS / "paper-claims.md").read_text(encoding="utf-8"))
    assert [block.words for block in found if block.kind == "claim"] == [(name,) for name in CLAIMS]


def test_a_claims_block_has_its_pairs_in_the_claims_order(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "paper-claims"
    folder.mkdir(parents=True)
    finals = {name: [2.0, 3.0] for name in CLAIMS["is-against-sf"].variants}
    write_results(made({"is-against-sf": finals}), folder / "results.json")
    text = Block.parse("paper-claims/claim is-against-sf").render(tmp_path)
    assert "| ddpo-is | ddpo-sf | 0.50 (" in text
    assert "--tasks is-against-sf --results docs/results/paper-claims/results.json docs/results/paper/" in text
    assert Block.parse("paper-claims/claim overoptimisation").render(tmp_path).startswith("Not yet run.")


def test_figures_that_one_seed_cannot_give_are_left_out(docs: Path) -> None:
    """A suite's first seed is a page already, though nothing can be said over seeds."""
    one = made({"line": {"a": [3.0], "b": [2.0]}, "square": {"a": [11.0], "b": [1.0]}})
    write_results(one, docs / "results" / "compare" / "results.json")
    page = docs / "page.md"
    page.write_text("<!-- results: compare/figures reward-queries efficiency profile improvement -->\n<!-- end -->\n")
    assert main(["tables", "--docs", str(docs)]) == 0
    assert re.findall(r"results/compare/([\w-]+)\.png", page.read_text()) == ["reward-queries"]
    assert (docs / "results" / "compare" / "reward-queries.svg").is_file()
