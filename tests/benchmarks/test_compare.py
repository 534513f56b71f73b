"""The main job for real: the comparison on the embedded model, short, through the command line."""

import contextlib
import io
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

from algorithms.checkpoints.file import read_checkpoint
from benchmarks.__main__ import main
from benchmarks.analysis.curves import curves
from benchmarks.analysis.results import read_results
from benchmarks.analysis.tables import result_table
from benchmarks.runs.run import read_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run two algorithms on one task with 64 and 128 images, and return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("compare")
    command = ["compare", "--suite", "jpeg", "--reward-queries", "64", "--tasks", "compressibility", "--processes", "1"]
    command += ["--algorithms", "ddpo-is", "sparse-rwr", "--folder", str(folder)]
    command += ["--results", str(folder / "kept" / "results.json")]
    first, again = io.StringIO(), io.StringIO()
    for output in (first, again):
        with contextlib.redirect_stdout(output):
            assert main(command) == 0
    assert result_table(curves(read_results(folder / "results.json").runs)).markdown() in again.getvalue()
    return folder, first.getvalue()


@pytest.mark.slow
def test_compare_prints_a_table_and_the_reports_path(finished: tuple[Path, str]) -> None:
    folder, output = finished
    rows = [line for line in output.splitlines() if line.startswith("| compressibility")]
    assert [row.split("|")[2].strip() for row in rows] == ["ddpo-is", "sparse-rwr"]
    assert f"report: {folder / 'report.html'}" in output
    assert "over evaluation images" in output


@pytest.mark.slow
def test_all_algorithms_start_from_the_same_evaluation(finished: tuple[Path, str]) -> None:
    runs = read_results(finished[0] / "results.json").runs
    before = [run.evaluations[0] for run in runs]
    assert before[0].rewards == before[1].rewards
    assert before[0].costs["reward_queries"] == 0
    assert all(len(line.rewards) == 64 for run in runs for line in run.evaluations)
    assert all(set(line.metrics) == {"recognised", "diversity"} for run in runs for line in run.evaluations)


@pytest.mark.slow
def test_every_evaluation_has_the_four_axes_and_results_are_kept_elsewhere_too(finished: tuple[Path, str]) -> None:
    results = read_results(finished[0] / "kept" / "results.json")
    assert results.runs == read_results(finished[0] / "results.json").runs
    for found in results.runs:
        assert found.complete
        for line in found.evaluations:
            assert set(line.costs) == {"reward_queries", "forward_equivalents", "seconds", "images"}
        last = found.evaluations[-1].costs
        queries = {"ddpo-is": 64, "sparse-rwr": 128}[found.variant]
        # Ten forwards an image; a trained row counts three: nine steps with a density an image, or ten updates of 128.
        trained = {"ddpo-is": 9 * queries, "sparse-rwr": 10 * 128}[found.variant]
        assert (last["reward_queries"], last["images"]) == (queries, queries)
        assert last["forward_equivalents"] == 10 * queries + 3 * trained
        assert last["seconds"] > 0


@pytest.mark.slow
def test_report_is_one_self_contained_page(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    page = (folder / "report.html").read_text()
    assert page.count('class="row"') == 2
    assert page.count('class="chart"') == 5  # reward and two metrics, and the reward against each of them
    assert "with another one their order may be different" in page, "one seed each"
    assert "95&nbsp;% interval" not in page
    for name in ("reward-queries.png", "reward-forwards.png", "pictures-compressibility.png", "results.json"):
        assert (folder / name).stat().st_size > 1000


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A comparison of two runs, one after the other, in a process group of its own; the first has logged a rollout.

    On an exact model, which is quick to load, and with a budget that lasts for hours.
    """
    command = [sys.executable, "-m", "benchmarks", "compare", "--suite", "exact", "--tasks", "gaussian-linear"]
    command += ["--algorithms", "ddpo-is", "ddpo-sf", "--reward-queries", "100000000", "--seeds", "0"]
    command += ["--processes", "1", "--folder", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        log = tmp_path / "gaussian-linear" / "ddpo-is" / "seed-0" / "metrics.jsonl"
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
    first, second = (tmp_path / "gaussian-linear" / name / "seed-0" for name in ("ddpo-is", "ddpo-sf"))
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
    first = tmp_path / "gaussian-linear" / "ddpo-is" / "seed-0"
    assert read_checkpoint(first / "checkpoint.zip").state["iteration"] >= 1


@pytest.mark.slow
def test_training_changes_the_weights_and_the_tuned_model_can_be_sampled(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished[0] / "compressibility" / "ddpo-is" / "seed-0"
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert lines[0]["rewards"] != lines[-1]["rewards"]
    output = tmp_path / "cats.png"
    assert main(["sample", "--run", str(run), "--prompts", "cat", "--output", str(output)]) == 0
    assert output.is_file()
    assert "left: base, right: tuned" in capsys.readouterr().out
