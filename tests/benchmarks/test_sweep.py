"""Many runs as one job: failures are retried once and stop nothing else, and results are kept run by run."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config.base import override
from benchmarks.analysis.curves import curves
from benchmarks.analysis.results import read_results, write_results
from benchmarks.report.source import read_source
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.runs.stopping import Stopped
from benchmarks.sweeps.local_pool import LocalPool
from benchmarks.sweeps.merged_results import Ledger
from benchmarks.sweeps.sweep import Message, run_all

TASK = TaskConfig(model="exact-gaussian", reward="exact-linear", num_inference_steps=2)


def spec_of(seed: int, **task: Any) -> RunSpec:
    """Return a run of two iterations of four images."""
    changes = {"images_per_iteration": 4, "num_envs": 4, "updates_per_iteration": 1, "trainable": "full"}
    config = override(ALGORITHMS["ddpo-is"].config, seed=seed, evaluation=EvaluationConfig(images=4), **changes)
    return RunSpec("ddpo-is", config, dataclasses.replace(TASK, **task), 8)


def plan_of(*seeds: int) -> dict[str, RunSpec]:
    return {f"line/ddpo-is/seed-{seed}": spec_of(seed) for seed in seeds}


class InProcess:
    """A pool that runs in this process at once; ``before`` may fail, or interrupt."""

    def __init__(self, before: Callable[[str], None] = lambda name: None) -> None:
        self.begun: list[str] = []
        self.asked_to_stop = False
        self._before = before

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, name: str, spec: RunSpec, folder: Path) -> "Future[None]":
        self.begun.append(name)
        future: Future[None] = Future()
        try:
            self._before(name)
            run(spec, folder)
            future.set_result(None)
        except RuntimeError as error:
            future.set_exception(error)
        return future

    def messages(self) -> list[Message]:
        return [Message(name, 8.0, 1.0) for name in self.begun]

    def stop(self) -> None:
        self.asked_to_stop = True


def test_a_failed_run_is_tried_once_more_and_sinks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = {"line/ddpo-is/seed-0": 1, "line/ddpo-is/seed-1": 2}  # name -> how often

    def before(name: str) -> None:
        if failing.get(name, 0):
            failing[name] -= 1
            raise RuntimeError("the disk is on fire")

    pool, finished = InProcess(before), []
    failures = run_all(plan_of(0, 1, 2), tmp_path, pool, finished.append)
    assert list(failures) == ["line/ddpo-is/seed-1"]
    assert "the disk is on fire" in failures["line/ddpo-is/seed-1"]
    assert sorted(pool.begun) == [f"line/ddpo-is/seed-{seed}" for seed in (0, 0, 1, 1, 2)]
    assert sorted(finished) == ["line/ddpo-is/seed-0", "line/ddpo-is/seed-2"]
    printed = "".join(capsys.readouterr())
    assert "run line/ddpo-is/seed-0 failed (RuntimeError: the disk is on fire); it is retried." in printed
    assert "run line/ddpo-is/seed-1 failed again" in printed


def test_complete_runs_are_skipped(tmp_path: Path) -> None:
    run_all(plan_of(0), tmp_path, InProcess())
    pool = InProcess()
    assert run_all(plan_of(0, 1), tmp_path, pool) == {}
    assert pool.begun == ["line/ddpo-is/seed-1"]


def test_ctrl_c_asks_every_run_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.sweeps.sweep

    def interrupted(*given: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(benchmarks.sweeps.sweep, "wait", original)
        return set(), set()

    original = benchmarks.sweeps.sweep.wait
    monkeypatch.setattr(benchmarks.sweeps.sweep, "wait", interrupted)
    pool, finished = InProcess(), []
    with pytest.raises(Stopped):
        run_all(plan_of(0), tmp_path, pool, finished.append)
    assert pool.asked_to_stop
    assert finished == []


@pytest.mark.skipif(os.name != "posix", reason="sends signals to processes")
def test_a_second_signal_ends_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a terminal or a cluster tells the workers too, they leave to the process that started them."""
    pool, workers = LocalPool(1, 1), []
    ordinary = pool.messages

    def messages() -> list[Message]:
        found = ordinary()
        if found and workers:  # it went on
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        if found:
            children = psutil.Process().children()
            workers.extend(child for child in children if "spawn_main" in " ".join(child.cmdline()))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                workers[-1].send_signal(number)
        return found

    monkeypatch.setattr(pool, "messages", messages)
    long = {"line/ddpo-is/seed-0": dataclasses.replace(spec_of(0), reward_queries=10**6)}
    with pytest.raises(Stopped, match="stopped at once; the same command resumes every run") as stopped:
        run_all(long, tmp_path, pool)
    assert stopped.value.status == 143
    assert workers
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def unfinish(file: Path) -> None:
    results = read_results(file)
    runs = [dataclasses.replace(found, complete=False) for found in results.runs]
    write_results(dataclasses.replace(results, runs=runs), file)


def test_runs_of_another_day_are_taken_over_and_none_is_lost(tmp_path: Path) -> None:
    """Seed 0 was made elsewhere, and its results are all that came here; seed 1 is made here; 2 stays from before."""
    first = Ledger(plan_of(0, 2), tmp_path / "elsewhere")
    run_all(first.own, tmp_path / "elsewhere", InProcess())
    shared = tmp_path / "shared" / "results.json"
    shared.parent.mkdir()
    first.write()
    shutil.copy(tmp_path / "elsewhere" / "results.json", shared)

    here, plan = tmp_path / "here", plan_of(0, 1)
    second = Ledger(plan, here, [shared])
    assert list(second.taken_over) == ["line/ddpo-is/seed-0"]
    pool = InProcess()
    run_all(second.own, here, pool)
    assert pool.begun == ["line/ddpo-is/seed-1"]
    results = second.write()
    assert [found.name for found in results.runs] == [f"line/ddpo-is/seed-{seed}" for seed in (0, 1, 2)]
    assert read_results(shared).runs == read_results(here / "results.json").runs
    elsewhere = read_results(tmp_path / "elsewhere" / "results.json").runs
    assert read_results(shared).runs[0].evaluations == elsewhere[0].evaluations
    assert len(curves(results.runs)["line"]["ddpo-is"].runs) == 3
    assert len(read_source(here).results.runs) == 3, "the report shows those that are not here too"
    # The same command again has nothing to do, also without the folders.
    assert Ledger(plan, tmp_path / "third", [shared]).own == {}


def test_the_same_run_is_made_once(tmp_path: Path) -> None:
    plan = {"one/ddpo-is/seed-0": spec_of(0), "two/ddpo-is/seed-0": spec_of(0)}
    ledger = Ledger(plan, tmp_path)
    assert list(ledger.own) == ["one/ddpo-is/seed-0"]
    run_all(ledger.own, tmp_path, InProcess())
    runs = ledger.write().runs
    assert [found.task for found in runs] == ["one", "two"]
    assert runs[0].evaluations == runs[1].evaluations


def test_unfinished_runs_are_not_taken_over(tmp_path: Path) -> None:
    ledger = Ledger(plan_of(0), tmp_path)
    run_all(ledger.own, tmp_path, InProcess())
    ledger.write()
    unfinish(tmp_path / "results.json")
    assert list(Ledger(plan_of(0), tmp_path / "third", [tmp_path / "results.json"]).own) == ["line/ddpo-is/seed-0"]


def test_other_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    ledger = Ledger(plan_of(0), tmp_path)
    run_all(ledger.own, tmp_path, InProcess())
    ledger.write()
    plan = {"line/ddpo-is/seed-1": spec_of(1, num_inference_steps=3)}
    with pytest.raises(ValueError, match="ddpo-is toward line differ in num_inference_steps, not only in their seed"):
        Ledger(plan, tmp_path)


def held(folder: Path, plan: dict[str, RunSpec]) -> Path:
    """Make a plan's runs and return their results file."""
    ledger = Ledger(plan, folder)
    run_all(ledger.own, folder, InProcess())
    ledger.write()
    return folder / "results.json"


def test_a_file_that_would_lose_runs_of_other_settings_is_refused(tmp_path: Path) -> None:
    """The plan's runs have the names of the file's and another budget: writing would leave none of the file's."""
    file = held(tmp_path / "elsewhere", plan_of(0, 1))
    before = file.read_bytes()
    plan = {name: dataclasses.replace(spec, reward_queries=4) for name, spec in plan_of(0, 1).items()}
    says = (
        rf"'{file}' holds line/ddpo-is/seed-0 with other settings \(reward_queries 8 there, 4 asked for\), and 1 more "
        r"such run\(s\), .* Name other files with --folder and --results; or, if these runs are to be replaced, move"
    )
    with pytest.raises(ValueError, match=says):
        Ledger(plan, tmp_path / "here", [file])
    (tmp_path / "here").mkdir()
    shutil.copy(file, tmp_path / "here")
    with pytest.raises(ValueError, match=rf"'{tmp_path / 'here' / 'results.json'}' holds line/ddpo-is/seed-0"):
        Ledger(plan, tmp_path / "here")
    assert file.read_bytes() == before
    # A file that is only read loses nothing; neither does one whose run has not ended, or has another name in the plan.
    assert list(Ledger(plan, tmp_path / "third", [], [file]).own) == list(plan)
    renamed = Ledger({**plan, "two/ddpo-is/seed-0": spec_of(0), "two/ddpo-is/seed-1": spec_of(1)}, tmp_path, [file])
    assert list(renamed.taken_over) == ["two/ddpo-is/seed-0", "two/ddpo-is/seed-1"]
    unfinish(file)
    assert list(Ledger(plan, tmp_path / "third", [file]).own) == list(plan)


def test_two_files_that_hold_other_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    """They are beyond the plan, and only one of them could stay."""
    here = held(tmp_path / "here", {"two/ddpo-is/seed-0": spec_of(0, num_inference_steps=3)})
    file = held(tmp_path / "elsewhere", {"two/ddpo-is/seed-0": spec_of(0)})
    with pytest.raises(ValueError, match=rf"'{file}' holds two/.* \(task.num_inference_steps 2 there, 3 in '{here}'\)"):
        Ledger(plan_of(1), tmp_path / "here", [file])


def test_runs_of_versions_without_a_field_that_has_its_default_are_taken_over(tmp_path: Path) -> None:
    file = held(tmp_path / "elsewhere", plan_of(0))
    results = json.loads(file.read_text())
    spec = results["runs"][0]["spec"]
    del spec["safeguards"], spec["task"]["metrics"], spec["task"]["vae_tiling"]
    file.write_text(json.dumps(results))
    assert list(Ledger(plan_of(0), tmp_path / "here", [file]).taken_over) == ["line/ddpo-is/seed-0"]


@pytest.mark.slow
def test_a_killed_process_takes_no_other_run_with_it(tmp_path: Path) -> None:
    """A process that dies without a word is what running out of memory looks like: the next run gets a new one."""
    killing = tmp_path / "reward.py"
    killing.write_text(
        "import os, torch\n\n"
        f"MARK = {str(tmp_path / 'killed')!r}\n\n"
        "def deadly(images, prompts):\n"
        "    if not os.path.exists(MARK):\n"
        "        open(MARK, 'w').close()\n"
        "        os._exit(9)\n"
        "    return torch.zeros(len(prompts))\n"
    )
    plan = {**plan_of(0), "deadly/ddpo-is/seed-0": spec_of(0, reward=f"{killing}:deadly")}
    finished: list[str] = []
    assert run_all(plan, tmp_path / "runs", LocalPool(1, 1), finished.append) == {}
    assert sorted(finished) == sorted(plan)
    assert (tmp_path / "killed").is_file()
