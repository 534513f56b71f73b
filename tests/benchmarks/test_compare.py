"""The main job for real: the comparison on the embedded model, short, through the command line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from algorithms import ALGORITHMS
from algorithms.checkpoint import read_checkpoint
from benchmarks.results import curves, read_results, table
from benchmarks.runs import read_run
from benchmarks.suite import COMPARED, HELD_OUT_PROMPTS, SETTINGS, TASKS, run_spec
from diffusion_gym.prompts import resolve_prompts


def test_every_setting_builds_and_is_fair() -> None:
    for task in TASKS:
        specs = {name: run_spec(task, name, 0, 2048) for name in ALGORITHMS}
        assert {spec.total_queries for spec in specs.values()} == {2048}
        assert len({spec.task for spec in specs.values()}) == 1
        assert len({(e := spec.config.evaluation).images * 1000 + e.seed for spec in specs.values()}) == 1
        assert len({spec.config.policy for spec in specs.values()}) == 1
        prompts = resolve_prompts(specs["rwr"].task.prompts or "")
        if task in COMPARED:
            assert len(prompts) <= 10
        assert (specs["rwr"].config.evaluation.held_out_prompts is not None) == (task in HELD_OUT_PROMPTS)
        for name in ("rwr", "sparse-rwr"):
            config = specs[name].config
            assert config.images_per_prompt >= 16, "a softmax over fewer images of a prompt means little"
            assert config.images_per_iteration % config.images_per_prompt == 0
    assert set(SETTINGS) == set(ALGORITHMS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run two algorithms on one task with 64 and 256 images, and return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("compare")
    command = [sys.executable, "-m", "benchmarks", "compare", "--reward-queries", "64", "--tasks", "compressibility"]
    command += ["--algorithms", "ddpo-is", "sparse-rwr", "--folder", str(folder)]
    first = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500)
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    assert table(curves(read_results(folder / "results.json"))) in again.stdout
    return folder, first.stdout


@pytest.mark.slow
def test_compare_prints_a_table_and_the_reports_path(finished: tuple[Path, str]) -> None:
    folder, output = finished
    rows = [line for line in output.splitlines() if line.startswith("| compressibility")]
    assert [row.split("|")[2].strip() for row in rows] == ["ddpo-is", "sparse-rwr"]
    assert f"report: {folder / 'report.html'}" in output
    assert "over evaluation images" in output


@pytest.mark.slow
def test_all_algorithms_start_from_the_same_evaluation(finished: tuple[Path, str]) -> None:
    runs = read_results(finished[0] / "results.json")["runs"]
    before = [run["evaluations"][0] for run in runs]
    assert before[0]["rewards"] == before[1]["rewards"]
    assert before[0]["costs"]["reward_queries"] == 0
    assert all(len(line["rewards"]) == 64 for run in runs for line in run["evaluations"])
    assert all(set(line["metrics"]) == {"recognised", "diversity"} for run in runs for line in run["evaluations"])


@pytest.mark.slow
def test_report_is_one_self_contained_page(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    page = (folder / "report.html").read_text()
    assert page.count('class="row"') == 2
    assert page.count('class="chart"') == 3
    assert "over evaluation images" in page
    for name in ("reward-queries.png", "reward-forwards.png", "pictures-compressibility.png", "results.json"):
        assert (folder / name).stat().st_size > 1000


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A comparison of two runs, one after the other, in a process group of its own; the first has logged a rollout."""
    command = [sys.executable, "-m", "benchmarks", "compare", "--tasks", "compressibility", "--processes", "1"]
    command += ["--algorithms", "ddpo-is", "ddpo-sf", "--reward-queries", "2048", "--folder", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        log = tmp_path / "compressibility" / "ddpo-is" / "seed-0" / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not log.is_file() or "rollout/" not in log.read_text():
            assert time.monotonic() < deadline, "the first run never wrote its log"
            assert process.poll() is None, "compare ended before it could be stopped"
            time.sleep(0.1)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group, as a terminal does")
def test_ctrl_c_stops_all_runs_with_a_checkpoint(begun: subprocess.Popen[str], tmp_path: Path) -> None:
    os.killpg(begun.pid, signal.SIGINT)
    output, _ = begun.communicate(timeout=200)
    assert begun.returncode == 130
    assert "stopped; the same command resumes." in output
    first, second = (tmp_path / "compressibility" / name / "seed-0" for name in ("ddpo-is", "ddpo-sf"))
    assert read_checkpoint(first / "checkpoint.zip").state["iteration"] >= 1
    assert not read_run(first).complete
    assert not second.exists(), "a run that had not begun was begun after Ctrl-C"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_no_worker_outlives_a_killed_comparison(begun: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = psutil.Process(begun.pid).children(recursive=True)
    assert workers
    begun.kill()
    _, alive = psutil.wait_procs(workers, timeout=200)
    assert not alive
    first = tmp_path / "compressibility" / "ddpo-is" / "seed-0"
    assert read_checkpoint(first / "checkpoint.zip").state["iteration"] >= 1


@pytest.mark.slow
def test_training_changes_the_weights_and_the_tuned_model_can_be_sampled(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run = finished[0] / "compressibility" / "ddpo-is" / "seed-0"
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert lines[0]["rewards"] != lines[-1]["rewards"]
    output = tmp_path / "cats.png"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "sample",
        "--run",
        str(run),
        "--prompts",
        "cat",
        "--output",
        str(output),
    ]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    assert output.is_file()
    assert "left: base, right: tuned" in result.stdout
