"""The documentation's tables are its results': the committed pages, and pages made here of small results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.aggregate import aggregate, improvement, improvements
from benchmarks.blocks import Block
from benchmarks.curves import curves
from benchmarks.pages import blocks
from benchmarks.results import write_results
from benchmarks.suite import CLAIMS
from benchmarks.tables import equal_reward_table, peak_table, score_table

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
    assert {task: (scale.start, scale.unit) for task, scale in found.scales.items()} == {
        "line": (1.0, 2.5),
        "square": (1.0, 10.0),
    }
    # Scores of a: 0.8, 1.2, 1, 1; of b: 0.4, 0.8, 0, 0. Of four, one is cut at each end.
    assert found.scores["a"].estimate == pytest.approx(1.0)
    assert found.scores["b"].estimate == pytest.approx((0.0 + 0.4) / 2)
    assert found.efficiency["a"][0] == [0, 64, 128]
    assert [score.estimate for score in found.efficiency["a"][1]] == pytest.approx([0.0, 0.5, 1.0])
    above_half = next(i for i, threshold in enumerate(found.thresholds) if threshold >= 0.5)
    assert found.profiles["b"][above_half].estimate == 0.25
    assert "| b | 0.20 |" in score_table(found)


def test_improvement_counts_pairs_on_each_task() -> None:
    (found,) = improvements(curves(RESULTS))
    assert (found.better, found.worse) == ("a", "b")
    # On the line 3 > 2, 4 > 2, 4 > 3, and 3 = 3 counts a half: 3.5 of 4.
    assert found.by_task["line"].estimate == pytest.approx(3.5 / 4)
    assert found.by_task["square"].estimate == 1.0
    assert found.together is not None
    assert found.together.estimate == pytest.approx((3.5 / 4 + 1) / 2)
    turned = improvement(curves(RESULTS), "b", "a")
    assert turned is not None
    assert turned.by_task["line"].estimate == pytest.approx(0.5 / 4)
    assert turned.by_task["line"].low <= 0.5 / 4 <= turned.by_task["line"].high


def test_peaks_are_each_runs_own() -> None:
    assert "| line | a | recognised | 0.50 | 0.90 | 64 | 0.10 |" in str(peak_table(curves(RESULTS), ["recognised"]))


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


@pytest.mark.parametrize("head", ["compare/beauty", "nowhere/rewards", "compare"])
def test_unknown_blocks_are_refused(head: str) -> None:
    with pytest.raises(ValueError, match="expected NAME/KIND"):
        Block.parse(head)


def test_the_documentation_says_what_its_results_say() -> None:
    assert main(["tables", "--docs", str(DOCS), "--check"]) == 0


def test_every_claim_has_its_block() -> None:
    found = blocks((DOCS / "paper-claims.md").read_text(encoding="utf-8"))
    assert [block.words for block in found] == [(name,) for name in CLAIMS]


def test_a_claims_block_has_its_pairs_in_the_claims_order(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "paper-claims"
    folder.mkdir(parents=True)
    finals = {name: [2.0, 3.0] for name in CLAIMS["is-against-sf"].variants}
    write_results(made({"is-against-sf": finals}), folder / "results.json")
    text = Block.parse("paper-claims/claim is-against-sf").render(tmp_path)
    assert "| ddpo-is | ddpo-sf | 0.50 (" in text
    assert "--tasks is-against-sf --results docs/results/paper-claims/results.json" in text
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
