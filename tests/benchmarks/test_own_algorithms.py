"""A user's own algorithm in ``compare``: its file, its settings, its row at equal forwards, and the likely mistakes."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import ALGORITHMS
from algorithms.config.base import override
from algorithms.own import load_algorithms, loaded_files
from benchmarks.__main__ import main
from benchmarks.analysis.leaderboard import board_table, leaderboard, notes, overall_table
from benchmarks.analysis.results import read_results
from benchmarks.commands.compare import Compare
from benchmarks.commands.own import suite_rows
from benchmarks.docs_tables.results import committed_results
from benchmarks.runs.record import Evaluation, Run, Scores
from benchmarks.runs.spec import RunSpec, TaskConfig

PAGE = Path(__file__).parents[2] / "docs" / "your-own-algorithm.md"
#: DDPO under another name: the class alone, which registers nothing.
CLASS = "from algorithms import DDPO\n\n\nclass MyDDPO(DDPO):\n    '''Mine.'''\n"
REGISTERED = """
from algorithms import ALGORITHMS, DDPO, AlgorithmEntry, DDPOConfig, PolicyConfig
ALGORITHMS["{name}"] = AlgorithmEntry(DDPO, DDPOConfig({settings}), "Mine.")
"""
#: It refuses the learning rate that the exact models recommend.
SLOW = """
from dataclasses import dataclass
from algorithms import DDPO, DDPOConfig

@dataclass(frozen=True)
class SlowConfig(DDPOConfig):
    def __post_init__(self):
        super().__post_init__()
        if self.learning_rate > 0.01:
            raise ValueError("too fast")

class SlowDDPO(DDPO):
    config_class = SlowConfig
"""
TINY = ["--suite", "exact", "--tasks", "gaussian-linear", "--reward-queries", "64", "--quick", "--processes", "1"]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return ``write(text)``, which gives the name of a Python file; what it registers is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    before = dict(ALGORITHMS)

    def write(text: str) -> str:
        Path("mine.py").write_text(text)
        return "mine.py"

    yield write
    ALGORITHMS.clear()
    ALGORITHMS.update(before)
    sys.modules.pop("mine", None)


def test_the_worked_example_is_a_row_beside_the_suites(
    written: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only its run is made, in another process; the others are the committed ones, at the forwards where it ends."""
    monkeypatch.setattr("benchmarks.report.page.write_figures", lambda *arguments: None)
    code = re.search(r'```python title="rloo.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    command = ["compare", written(code[1]), *TINY, "--no-check"]
    assert main(command) == 0
    folder = Path("runs/exact-mine-quick")
    assert [run.name for run in read_results(folder / "results.json").runs] == ["gaussian-linear/rloo/seed-0"]
    (board,) = json.loads((folder / "leaderboard.json").read_text())["boards"]
    # Ten steps per image, and each is trained (three forwards), beside the starting model (one).
    assert (board["forwards"], board["shortest"]) == (64 * 10 * (1 + 3 + 1), "rloo")
    rows = {row["algorithm"]: row for row in board["rows"]}
    assert list(rows.values()) == sorted(rows.values(), key=lambda row: -row["reward"]["estimate"])
    assert set(rows) == {"ddpo-is", "ddpo-sf", "rwr", "sparse-rwr", "sb3-ppo", "rloo"}
    assert [name for name, row in rows.items() if row["own"]] == ["rloo"]
    assert (rows["rloo"]["seeds"], rows["rloo"]["reward"]["low"], rows["rloo"]["queries"]) == ([0], None, 64)
    assert rows["rwr"]["seeds"] == [0, 1, 2]
    assert rows["rwr"]["reward"]["low"] is not None
    assert "Leaderboard at equal forwards" in (folder / "report.html").read_text()
    printed = capsys.readouterr().out
    assert (folder / "leaderboard.md").read_text() in printed
    Path("mine.py").write_text(code[1] + "# changed\n")
    assert main(command) == 2
    assert "'mine.py' has changed since its runs in 'runs/exact-mine-quick'" in capsys.readouterr().err.replace(
        f"{Path.cwd()}/", ""
    )


def run_of(name: str, seed: int, *lines: tuple[float, float], metric: float = 0.5) -> Run:
    """Return a finished run with evaluations at some forwards, each with a mean reward."""
    task = TaskConfig(model="exact-gaussian", reward="exact-linear")
    config = override(ALGORITHMS["ddpo-is"].config, seed=seed)
    found = [
        Evaluation(
            iteration=at,
            costs={"forward_equivalents": forwards, "reward_queries": forwards / 10, "seconds": forwards / 100},
            rewards=[reward - 1, reward + 1],
            metrics={"recognised": metric},
            held_out=Scores(rewards=[reward / 2], metrics={}),
        )
        for at, (forwards, reward) in enumerate(lines)
    ]
    return Run("line", name, RunSpec("ddpo-is", config, task), True, found, {}, {"processor": "a CPU"}, (3, 4, 4), [])


def test_numbers_at_equal_forwards_by_hand() -> None:
    """``a`` ends first, at 100 forwards; ``b`` is read halfway between its evaluations at 50 and 150."""
    runs = [run_of("a", 0, (0, 1.0), (100, 3.0))]
    runs += [run_of("b", seed, (0, 1.0), (50, 3.0 + seed), (150, 6.0 + seed), metric=0.25) for seed in (0, 1)]
    found = leaderboard(runs, ["a"])
    (board,) = found.boards
    assert (board.forwards, board.shortest, board.start, board.unit) == (100, "a", 1.0, 4.0)
    first, second = board.rows
    assert (first.algorithm, first.reward.estimate, first.reward.low, first.reward.high) == ("b", 5.0, 4.5, 5.5)
    assert (first.queries, first.seconds, first.held_out and first.held_out.estimate) == (10, 1.0, 2.5)
    assert first.metrics["recognised"].estimate == 0.25
    assert (second.algorithm, second.reward.estimate, second.reward.known, second.scores) == ("a", 3.0, False, [0.5])
    assert [(one.algorithm, one.score.estimate, one.score.known) for one in found.overall] == [
        ("b", 1.0, True),
        ("a", 0.5, False),
    ]
    assert "| line | a (own) | 100 | 1 | 3.000 | 1.500 | 10 | 1 | 0.50 |" in board_table(found).markdown()
    assert "| 2 | a (own) | 0.50 |" in overall_table(found).markdown()
    assert "line: 100, where a ends" in notes(found)


def test_settings_are_the_files_then_the_suites_then_the_models(written: Callable[[str], str]) -> None:
    policy = "clip_range=0.5, images_per_iteration=32, num_envs=16, policy=PolicyConfig(eta=0.5)"
    path = Path(written(REGISTERED.format(name="mine", settings=policy)))
    plan = Compare((path,), suite="paper", quick=True).plan()
    assert list(plan) == [
        f"{task}/mine/seed-0" for task in ("compressibility", "incompressibility", "aesthetic", "vlm_alignment")
    ]
    theirs = Compare(suite="paper").plan()["compressibility/ddpo-sf/seed-0"]
    spec = plan["compressibility/mine/seed-0"]
    assert spec.reward_queries == theirs.reward_queries // 4
    assert spec.task == theirs.task
    mine = spec.config
    assert (mine.clip_range, mine.images_per_iteration, mine.num_envs) == (0.5, 32, 16)  # type: ignore[attr-defined]
    assert mine.policy == override(theirs.config.policy, eta=0.5)
    assert mine.learning_rate == 0.002, "what emoji-animals recommends"
    assert mine.kl_to_start
    assert mine.evaluation == override(theirs.config.evaluation, every=2)  # every 64 queries
    (geneval,) = Compare((path,), tasks=("geneval",), quick=True).plan().values()
    assert geneval.config.policy == override(mine.policy, sampler="auto", trainable="full", targets=("attention",))
    assert (geneval.config.learning_rate, geneval.config.adam_beta1) == (1e-4, 0.97), "what emoji-world recommends"
    whole = Compare((path,), suite="paper").plan()
    assert {name.rpartition("-")[2] for name in whole} == {"0", "1", "2", "3", "4"}
    assert {run.reward_queries for run in whole.values()} == {theirs.reward_queries}


def test_a_class_is_registered_by_its_name(written: Callable[[str], str]) -> None:
    assert load_algorithms(Path(written(CLASS))).names == ["my-ddpo"]
    assert (ALGORITHMS["my-ddpo"].cls.__name__, ALGORITHMS["my-ddpo"].summary) == ("MyDDPO", "Mine.")
    assert Path("mine.py").resolve() in loaded_files()
    del ALGORITHMS["my-ddpo"]
    assert Path("mine.py").resolve() not in loaded_files(), "a process that is started would register it again"


def test_every_committed_run_of_a_suite_is_a_row(
    written: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = Compare((Path(written(CLASS)),), suite="jpeg")
    rows = suite_rows(options)
    assert {run.variant for run in rows} == {"ddpo-is", "ddpo-sf", "rwr", "sparse-rwr"}
    assert {run.seed for run in rows} == {0, 1, 2, 3, 4}
    assert {run.variant for run in suite_rows(replace(options, algorithms=("rwr",)))} == {"rwr"}
    assert not capsys.readouterr().out
    assert suite_rows(replace(options, suite="leash", results=tuple(committed_results("jpeg")))) == []
    assert "40 runs in the results are left out: suite leash has other settings" in capsys.readouterr().out


def test_algorithms_without_results_run_beside_it(
    written: Callable[[str], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.sweeps.probed._measure", lambda spec: None)  # no model is loaded
    command = ["compare", written(CLASS), "--quick", "--dry-run"]  # plain compare's suite has no committed results
    assert main([*command, "--tasks", "compressibility"]) == 0
    assert "--algorithms ddpo-is ddpo-sf; or name their results: --results PATH" in capsys.readouterr().out
    assert main([*command, "--tasks", "compressibility", "--algorithms", "rwr"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| compressibility")]
    assert [(row[1], row[6], row[11]) for row in rows] == [("my-ddpo", "192", "0 |"), ("rwr", "256", "0 |")]


MISTAKES = {
    "no algorithm": ("x = 1", "'mine.py' has no algorithm: expected a subclass of DiffusionAlgorithm with its config"),
    "broken": ("import nothing_of_that_name", "'mine.py' does not run: ModuleNotFoundError"),
    "a program": ("import sys\nsys.exit(0)", "put what is to run only as a program under if __name__"),
    "a name of ours": (REGISTERED.format(name="rwr", settings=""), "has an algorithm 'rwr', and there is one of that"),
    "no folder's name": (REGISTERED.format(name="A/B", settings=""), "expected a name of lower-case letters"),
    "its own seed": (REGISTERED.format(name="mine", settings="seed=3"), "sets its evaluation or its seed, which are"),
    "unfitting": (SLOW, "slow-ddpo cannot run on gaussian-linear with the suite's settings: too fast"),
    "unbilled forwards": (
        f"{CLASS}    def count_rows(self, *rows, **more):\n        pass\n",
        "my-ddpo does not pass check_algorithm, so its row may mislead. MyDDPO: every row through the denoiser must",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(text: str, sentence: str, written: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(ALGORITHMS)
    assert main(["compare", written(text), *TINY]) == 2
    assert sentence in capsys.readouterr().err
    assert ALGORITHMS["rwr"] is before["rwr"]


def test_other_mistakes(written: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in {
        "missing.py": "'missing.py' does not exist; expected a Python file",
        "paper": "'paper' is not a Python file; did you mean --suite paper?",
        "ddpo-is": "'ddpo-is' is not a Python file; did you mean --algorithms ddpo-is?",
        "--no-check": "--no-check leaves out the check of your own algorithms; name their file, too",
        f"{written(CLASS)} --results missing.json": "'missing.json' is not a results file",
    }.items():
        assert main(["compare", *words.split()]) == 2
        assert sentence in capsys.readouterr().err
