"""The report's first screen: who won, from where to where, at what cost, and the reward at equal quality."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorithms import ALGORITHMS
from algorithms.config.base import override
from benchmarks.analysis.curves import curves
from benchmarks.analysis.results import Results
from benchmarks.analysis.table import Cell
from benchmarks.analysis.verdict import verdicts
from benchmarks.report.tables import fallen_table, measured_table, short_table
from benchmarks.report.verdict import cards, one_seed_note
from benchmarks.runs.record import Evaluation, Run, Scores
from benchmarks.runs.spec import RunSpec, TaskConfig

#: A variant's evaluations: reward queries, mean reward, and the measure of quality.
Way = list[tuple[int, float, float]]


def made(reward: str, metric: str, ways: dict[str, Way], seeds: int = 1, held_out: bool = False) -> list[Run]:
    """Return runs of one task; a seed's rewards are its number of hundredths higher."""
    runs = []
    for name, way in ways.items():
        for seed in range(seeds):
            lines = []
            for index, (queries, mean, quality) in enumerate(way):
                costs = {"reward_queries": queries, "forward_equivalents": queries, "images": queries, "seconds": 1.0}
                scores: dict[str, Any] = {
                    "rewards": [mean + seed / 100] * 2,
                    "metrics": {metric: quality} if metric else {},
                }
                apart = Scores(rewards=[0.0], metrics={metric: quality}) if held_out else None
                lines.append(Evaluation(iteration=index, costs=costs, held_out=apart, **scores))
            spec = RunSpec("ddpo-is", override(ALGORITHMS["ddpo-is"].config, seed=seed), TaskConfig(reward=reward))
            made_by = {"processor": "a CPU"}
            runs.append(
                Run("jpeg", name, spec, True, lines, lines[-1].costs, made_by, (3, 64, 64), [], f"{name}/{seed}")
            )
    return runs


def said(runs: list[Run]) -> tuple[str, str]:
    """Return the two sentences about runs of one task."""
    summary = curves(runs)
    (card,) = cards(verdicts(summary), summary, Results(runs), Path("none"))
    return text(card["sentence"]), text(card["equal"])


def text(cell: Cell) -> str:
    return "".join(piece if isinstance(piece, str) else piece.text for piece in cell).replace("\N{NO-BREAK SPACE}", " ")


SIZES: dict[str, Way] = {
    "first": [(0, 2.0, 1.0), (100, 3.0, 0.9), (200, 4.0, 0.7), (300, 5.0, 0.0)],
    "second": [(0, 2.0, 1.0), (100, 2.2, 0.9), (200, 2.4, 0.8), (300, 2.6, 0.85)],
    "third": [(0, 2.0, 1.0), (100, 1.9, 0.5), (200, 2.1, 0.4), (300, 2.2, 0.3)],
}


def test_the_cost_is_what_is_recognised_and_rewards_are_compared_where_80_percent_are() -> None:
    """From 0.9 to 0.7 half the way is 0.8: 3.5 kB after 150 queries; the second never falls below, so it ends there."""
    sentence, equal = said(made("incompressibility", "recognised", SIZES))
    assert sentence == "first first, 2.00 → 5.00 kB (+150 %); animals recognised 100 % → 0 %."
    assert equal == (
        "At 80 % recognised: first 3.50 kB (stop near 150 queries), second 2.60 kB (at the end); no gain at that "
        "level: third."
    )


def test_a_negated_size_is_shown_as_a_size() -> None:
    ways = {name: [(q, -reward, quality) for q, reward, quality in way[::-1]] for name, way in SIZES.items()}
    ways = {name: [(300 - q, *rest) for q, *rest in way] for name, way in ways.items()}
    sentence, _ = said(made("compressibility", "recognised", ways))  # type: ignore[arg-type]
    assert sentence.startswith("first first, 5.00 → 2.00 kB (\N{MINUS SIGN}60 %)")


def test_several_seeds_say_how_many_agree_and_one_says_that_it_is_one() -> None:
    ways = {name: SIZES[name] for name in ("first", "second")}
    several = made("incompressibility", "recognised", ways, seeds=3)
    assert said(several)[0].startswith("first first, 2.01 → 5.01 kB (+149 %), above second in 3 of 3 seeds; animals")
    assert one_seed_note(curves(several)) is None
    note = one_seed_note(curves(made("incompressibility", "recognised", ways)))
    assert note is not None
    assert note.startswith("One seed")


def test_the_gold_judge_is_what_is_aimed_at() -> None:
    """Held-out prompts count where there are any; half of the winner's gain of 0.2 is 0.7."""
    ways: dict[str, Way] = {
        "first": [(0, 0.5, 0.6), (100, 0.7, 0.8), (200, 0.9, 0.75)],
        "second": [(0, 0.5, 0.6), (100, 0.6, 0.6), (200, 0.7, 0.69)],
    }
    runs = made("geneval", "judge", ways, held_out=True)
    sentence, equal = said(runs)
    assert sentence == "first first, 0.50 → 0.90 (+80 %); right by the gold judge on held-out prompts 60 % → 75 %."
    assert equal == "At 70 % right: first near 50 queries (reward 0.60); never: second."
    assert verdicts(curves(runs))[0].best == {"first": 100, "second": 200}


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ({"one": [(0, 2.0, 1.0), (100, 3.0, 0.9)]}, "one: 2.00 → 3.00 (+50 %)."),
        ({"one": [(0, 2.0, 1.0), (100, 1.0, 0.9)]}, "one gains nothing, 2.00 → 1.00 (\N{MINUS SIGN}50 %)."),
        ({"one": [(0, -2.0, 1.0), (100, 1.0, 0.9)]}, "one: -2.00 → 1.00."),
    ],
)
def test_one_run_is_not_first_and_a_change_from_below_zero_is_no_percentage(
    ways: dict[str, Way], expected: str
) -> None:
    sentence, equal = said(made("aesthetic", "", ways))
    assert sentence == expected
    assert equal == ("What it cost the pictures was not measured." if "nothing" not in expected else "")


def test_unfinished_runs_are_so_far() -> None:
    runs = made("aesthetic", "recognised", SIZES)
    assert said([replace(run, complete=False) for run in runs])[0].startswith("so far first first, ")


def test_the_short_table_ranks_and_constants_are_a_sentence() -> None:
    summary = curves(made("incompressibility", "recognised", SIZES))
    table = short_table(summary, verdicts(summary))
    assert [column.title for column in table.columns] == ["task", "algorithm", "before", "after", "animals recognised"]
    assert [text(row[1]) for row in table.rows] == ["first", "second", "third"]
    assert text(table.rows[1][-1]) == "100 % → 85 %"
    measured, sentence = measured_table(summary)
    assert sentence == "All had 300 queries, 300 forwards, 1 seconds."
    assert measured is not None
    assert [column.title for column in measured.columns] == ["task", "algorithm", "recognised"]


def test_only_what_is_best_between_start_and_end_is_said_to_have_been_better() -> None:
    ways: dict[str, Way] = {
        "rose": [(0, 1.0, 0.5), (100, 2.0, 0.9), (200, 3.0, 0.7)],
        "fell": [(0, 1.0, 0.9), (100, 2.0, 0.8), (200, 3.0, 0.7)],
    }
    table = fallen_table(curves(made("aesthetic", "recognised", ways)))
    assert table is not None
    assert [text(row[1]) for row in table.rows] == ["rose"]
    assert fallen_table(curves(made("aesthetic", "diversity", ways))) is None, "it rises with texture too"
