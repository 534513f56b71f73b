"""Ctrl-C, SIGTERM and SIGHUP: a checkpoint and a word on how to go on; the second time at once, without a traceback."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms.checkpoints.file import read_checkpoint
from benchmarks.__main__ import main
from benchmarks.runs.run import read_run
from benchmarks.runs.stopping import Stopped, StopSignal, quiet_ctrl_c
from tests.builders.algorithms import KINDS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals to this process")
TRAIN = ["--model", "exact-mixture", "--reward", "exact-linear", "--policy.trainable", "full", "--threads", "1"]
TRAIN += ["--images-per-iteration", "8", "--num-envs", "8", "--num-inference-steps", "3", "--reward-queries", "24"]
TRAIN += ["--evaluation.images", "4", "--evaluation.every", "2", "--checkpoint-every", "1", "--policy.chunk-size", "4"]
TRAIN += ["--images-per-prompt", "4"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Every command leaves the handlers as it found them."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def sending(number: int, times: int, nth: int, ordinary: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which sends this process a signal before its nth call."""
    called = iter(range(1, 10**9))

    def call(*given: Any, **named: Any) -> Any:
        if next(called) == nth:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return ordinary(*given, **named)

    return call


def interrupt(monkeypatch: pytest.MonkeyPatch, place: str, number: int, times: int = 1) -> None:
    """Let a signal come in the middle of the second iteration's rollout or update, in an evaluation, or at the end."""
    if place == "rollout":
        target, nth = "benchmarks.runs.recorder.Recorder._on_step", 5
    elif place == "update":
        target, nth = "torch.nn.utils.clip_grad_norm_", 2
    elif place == "chunk":
        target, nth = "benchmarks.runs.recorder.Recorder._on_backward", 6
    elif place == "first evaluation":
        target, nth = "algorithms.evaluation._Drawing.evaluated", 1
    else:
        target, nth = "algorithms.evaluation._Drawing.evaluated", 3
    monkeypatch.setattr("benchmarks.runs.forecast.rows_per_iteration", lambda spec: None)  # an iteration of its own
    module, _, name = target.rpartition(".")
    holder: Any = __import__("pydoc").locate(module)
    monkeypatch.setattr(target, sending(number, times, nth, getattr(holder, name)))


def state(folder: Path) -> tuple[dict[str, Any], dict[str, bytes], list[Any]]:
    """What a run has come to."""
    checkpoint = read_checkpoint(folder / "checkpoint.zip")
    checkpoint.state["costs"].pop("seconds")
    tensors = {name: value.numpy().tobytes() for name, value in checkpoint.tensors.items()}
    return checkpoint.state, tensors, [line.rewards for line in read_run(folder).evaluations]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of an algorithm's run that was never stopped."""
    root = tmp_path_factory.mktemp("whole")

    def made(name: str) -> Path:
        if not (root / name).exists():
            assert main(["train", name, *TRAIN, *more(name), "--folder", str(root / name)]) == 0
        return root / name

    return made


def more(name: str) -> list[str]:
    """Two updates an iteration, where there can be two."""
    rows = {"sb3-ppo": "12", "rwr": "8", "sparse-rwr": "8"}
    sizes = ["--batch-size", rows[name]] if name in rows else []
    return ["--updates-per-iteration", "2", *sizes] if name in ("ddpo-is", "rwr", "sparse-rwr") else sizes


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("place", ["rollout", "update", "chunk", "first evaluation", "last evaluation"])
def test_the_first_signal_leaves_a_checkpoint_wherever_it_comes(
    name: str,
    place: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the same command resumes: the end is that of a run that was never stopped."""
    expected = state(whole(name))
    train = ["train", name, *TRAIN, *more(name), "--folder", str(tmp_path)]
    with monkeypatch.context() as patch:
        interrupt(patch, place, signal.SIGTERM)
        assert main(train) == 143
    iterations = {"first evaluation": (0,), "last evaluation": (3,), "rollout": (1,)}.get(place, (1, 2, 3))
    assert read_checkpoint(tmp_path / "checkpoint.zip").state["iteration"] in iterations
    assert not read_run(tmp_path).complete
    checkpoint = tmp_path / "checkpoint.zip"
    assert f"stopped; the checkpoint is {checkpoint}. The same command resumes." in capsys.readouterr().out
    assert main(train) == 0
    assert state(tmp_path) == expected


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("times", [1, 2])
def test_a_second_signal_ends_at_once_and_says_how_to_resume(
    number: int,
    status: int,
    times: int,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started by a program that ignores the signal, such as nohup")
    train = ["train", "ddpo-is", *TRAIN, *more("ddpo-is"), "--folder", str(tmp_path)]
    with monkeypatch.context() as patch:
        interrupt(patch, "chunk", number, times)
        assert main(train) == status
    said = "".join(capsys.readouterr())
    assert "The same command " + ("starts again." if times == 2 else "resumes.") in said
    assert ("stopped at once" in said) == (times == 2)
    assert "Traceback" not in said
    assert main(train) == 0
    assert state(tmp_path) == state(whole("ddpo-is"))


@pytest.mark.parametrize(("place", "iteration"), [("rollout", 1), ("update", None), ("last evaluation", 3)])
def test_a_second_signal_leaves_what_was_done_since_the_last_checkpoint(
    place: str, iteration: int | None, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an update, whose weights are between two iterations, the last checkpoint stays: here there is none."""
    train = ["train", "ddpo-is", *TRAIN, *more("ddpo-is"), "--checkpoint-every", "99", "--folder", str(tmp_path)]
    with monkeypatch.context() as patch:
        interrupt(patch, place, signal.SIGINT, 2)
        assert main(train) == 130
    if iteration is None:
        assert not (tmp_path / "checkpoint.zip").exists()
    else:
        assert read_checkpoint(tmp_path / "checkpoint.zip").state["iteration"] == iteration
    assert main(train) == 0
    assert state(tmp_path) == state(whole("ddpo-is"))


def test_before_a_run_has_begun_it_says_that_there_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.runs.run.build", sending(signal.SIGINT, 2, 1, lambda *given: None))
    assert main(["train", "ddpo-is", *TRAIN, "--folder", str(tmp_path)]) == 130
    assert "stopped at once; there is no checkpoint yet. The same command starts again." in capsys.readouterr().out


def test_a_command_without_checkpoints_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffusion_gym.envs.config.build_mdp", sending(signal.SIGTERM, 1, 1, lambda *given: None))
    assert main(["sample", "--output", str(tmp_path / "a.png")]) == 143
    error = capsys.readouterr().err
    assert error == "stopped; what was under way is not kept, earlier checkpoints are. Give the same command again.\n"
    assert list(tmp_path.iterdir()) == []


def test_pretraining_keeps_its_state(tmp_path: Path) -> None:
    from benchmarks.pretrain.training import Schedule, optimise

    seen: list[int] = []

    def train(interrupted: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def loss(step: int) -> torch.Tensor:
            seen.append(step)
            if interrupted and step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return model(torch.full((4, 3), float(step))).square().mean()

        optimise(model, loss, Schedule(steps=5, batch=4, lr=0.1), tmp_path / f"{interrupted}.pt")
        return model.weight.detach().clone()

    expected = train(False)
    seen.clear()
    with pytest.raises(Stopped, match="the same command resumes") as stopped:
        train(True)
    assert stopped.value.status == 143
    assert seen == [0, 1, 2]
    torch.manual_seed(0)
    seen.clear()
    assert torch.equal(train(True), expected)
    assert seen == [3, 4]


def test_outside_the_main_thread_nothing_is_heard_and_nothing_fails() -> None:
    found: list[bool] = []

    def work() -> None:
        with StopSignal("nothing") as stop:
            found.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_what_nohup_hides_stays_hidden() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal("nothing") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_prints_no_traceback_while_a_command_starts_and_ends() -> None:
    """What was ignored stays so."""
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler, then in {signal.default_int_handler: signal.SIG_DFL, signal.SIG_IGN: signal.SIG_IGN}.items():
            signal.signal(signal.SIGINT, handler)
            quiet_ctrl_c()
            assert signal.getsignal(signal.SIGINT) == then
    finally:
        signal.signal(signal.SIGINT, before)


def test_ranks_wait_for_their_launcher_to_end_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal tells the ranks of Ctrl-C, and then the launcher does: that is no second one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopSignal("nothing") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
