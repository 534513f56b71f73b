"""The search's ranking, on small results made here."""

from dataclasses import replace

from algorithms import ALGORITHMS
from benchmarks.commands.search import CANDIDATES, ranking
from benchmarks.runs.record import Evaluation, Run
from benchmarks.runs.spec import RunSpec


def run(task: str, variant: str, gain: float, recognised: float = 0.5) -> Run:
    """Return a run that goes from 1 to 1 + gain."""
    metrics = {"recognised": recognised}
    lines = [
        Evaluation(iteration=index, costs={}, rewards=[mean - 0.5, mean + 0.5], metrics=metrics)
        for index, mean in enumerate((1, 1 + gain))
    ]
    spec = RunSpec("rwr", ALGORITHMS["rwr"].config)
    return Run(task, variant, spec, True, lines, {}, {}, (3, 4, 4), [])


def judged(variant: str, gain: float, before: float, after: float) -> Run:
    """Return a run on geneval whose reward gains ``gain``, and which the gold judge finds better or worse."""
    found = run("geneval", variant, gain)
    shares = [{"judge": share, "judge-position": share / 2} for share in (before, after)]
    lines = [replace(line, metrics=metrics) for line, metrics in zip(found.evaluations, shares, strict=True)]
    return replace(found, evaluations=lines)


def rows(*runs: Run) -> list[list[str]]:
    lines = ranking(runs).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_candidates_rank_by_the_share_of_their_own_algorithms_best() -> None:
    """On tasks of other units, and whatever another algorithm gains: 1 and 0.1 of the best against 0.5 and 1."""
    found = rows(
        run("bytes", "rwr-0", 100.0),
        run("bytes", "rwr-1", 50.0),
        run("score", "rwr-0", 0.01),
        run("score", "rwr-1", 0.1, recognised=0.25),
        run("bytes", "ddpo-is-0", 1000.0),
        run("score", "ddpo-is-0", 1.0),
    )
    assert [row[:1] + row[2:5] for row in found] == [
        ["rwr", "+50.000", "+0.100", "0.75"],
        ["rwr", "+100.000", "+0.010", "0.55"],
        ["ddpo-is", "+1000.000", "+1.000", "1.00"],
    ]
    assert found[0][1] == ", ".join(f"{name} {value}" for name, value in CANDIDATES["rwr"][1].items())
    assert found[0][-1] == "0.25"


def test_candidates_on_geneval_rank_by_the_gold_judge() -> None:
    """Not by the reward, which may be hacked; what it says of positions stands beside."""
    found = rows(judged("rwr-0", 0.9, 0.5, 0.6), judged("rwr-1", 0.1, 0.5, 0.7))
    assert [row[2:] for row in found] == [["+0.200", "1.00", "0.35"], ["+0.100", "0.50", "0.30"]]


def test_seeds_of_a_candidate_are_averaged_before_they_are_compared() -> None:
    found = rows(run("a", "rwr-0", 1.0), run("a", "rwr-0", 0.0), run("a", "rwr-1", 0.4))
    assert [row[3] for row in found] == ["1.00", "0.80"]


def test_a_task_on_which_none_gains_decides_nothing() -> None:
    """There is no best gain to have a share of; losses in one task's unit must not outweigh another's gains."""
    found = rows(
        run("up", "rwr-0", 1.0), run("down", "rwr-0", -50.0), run("up", "rwr-1", 0.5), run("down", "rwr-1", -1.0)
    )
    assert [row[4] for row in found] == ["1.00", "0.50"]


def test_a_candidate_without_a_run_on_a_task_is_not_ranked_yet() -> None:
    found = rows(run("a", "rwr-0", 1.0), run("b", "rwr-0", 1.0), run("a", "rwr-1", 2.0))
    assert [row[3:5] for row in found] == [["+1.000", "0.75"]]


def test_where_none_gains_the_least_loss_is_first() -> None:
    found = rows(run("down", "rwr-0", -3.0), run("down", "rwr-1", -1.0), run("down", "rwr-2", -2.0))
    assert [row[2] for row in found] == ["-1.000", "-2.000", "-3.000"]
