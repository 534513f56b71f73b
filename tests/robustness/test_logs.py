"""Logs: JSON lines always, Weights & Biases where asked for, with the same numbers; nothing leaves the machine."""

import dataclasses
import importlib.util
import io
import json
import math
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.runs.folder import log_lines
from benchmarks.runs.run import read_run, run
from benchmarks.runs.spec import RunSpec, TaskConfig, Writing
from diffusion_gym.jsonlines import append_line, read_lines

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="needs wandb: pip install diffusion-denoise-gym[wandb]"
)


def spec(queries: int = 48) -> RunSpec:
    """A run of three iterations of 16 images, evaluated before, after the second, and at its end."""
    changes = {"images_per_iteration": 16, "num_envs": 16, "trainable": "full"}
    config = override(ALGORITHMS["ddpo-is"].config, evaluation=EvaluationConfig(images=4, every=2), **changes)
    return RunSpec("ddpo-is", config, TaskConfig("exact-gaussian", "exact-linear", num_inference_steps=3), queries)


class Listener:
    """Counts who connects to a port of this machine."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.calls = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            self.calls += 1
            connection.close()


def wandb_records(file: Path) -> list[bytes]:
    """Read the records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    content, position, records, parts = file.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:  # too short for a header: padding
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(parts)
            parts = b""
    return records


def finished_records(file: Path) -> list[Any]:
    """Read a run's records once its last is there: another process writes them."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + 60
    while True:
        records = []
        for data in wandb_records(file):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(data)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, "the run was never ended"
        time.sleep(0.1)


@needs_wandb
def test_wandb_offline_holds_the_log_and_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the user's environment says online: every line with its step, the configuration, the pictures."""
    listener = Listener()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", listener.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, listener.url)
    run(spec(), tmp_path / "run", writing=Writing(wandb="offline"))
    assert listener.calls == 0
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    history, config = [], {}
    for record in finished_records(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
    logged = [line for line in history if "rollout/ep_rew_mean" in line]
    expected = [line for line in log_lines(tmp_path / "run", "metrics.jsonl") if "rollout/ep_rew_mean" in line]
    assert [line["step"] for line in logged] == [48, 96, 144]
    for key in ("step", "rollout/ep_rew_mean", "train/loss", "train/skipped_updates"):
        assert [line[key] for line in logged] == [line[key] for line in expected]
    assert config["algorithm"] == "ddpo-is"
    assert config["config"]["learning_rate"] == spec().config.learning_rate
    assert len([line for line in history if "eval/images" in line or "eval/images._type" in line]) == 3
    assert len(list(file.parent.rglob("*.png"))) == 3
    names = {path.name for path in file.parent.rglob("*") if path.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json", "diff.patch", "output.log"}


@needs_wandb
def test_a_resumed_run_goes_on_in_wandb_and_is_no_other_run(tmp_path: Path) -> None:
    """Files of both processes carry one identity, so that a synchronisation makes one run of them."""
    questions = iter(range(100))
    stopped = run(spec(), tmp_path / "run", writing=Writing(wandb="offline"), should_stop=lambda: next(questions) == 4)
    assert not stopped.complete
    assert run(spec(), tmp_path / "run", writing=Writing(wandb="offline")).complete
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1


def test_without_wandb_it_is_asked_for_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ordinary = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else ordinary(name))
    assert main(["train", "ddpo-is", "--wandb", "offline", "--folder", str(tmp_path / "run")]) == 2
    assert "needs the package wandb: python -m pip install" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_json_lines_are_always_there_and_alone_by_default(tmp_path: Path) -> None:
    """No TensorBoard, no wandb unless asked for; every line is JSON by the standard, which has no NaN."""
    record = run(spec(), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.zip", "evaluations.jsonl", "images", "metrics.jsonl", "pipeline", "run.json",
    ]  # fmt: skip

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for name in ("metrics.jsonl", "evaluations.jsonl"):
        for line in (tmp_path / "run" / name).read_text(encoding="utf-8").splitlines():
            json.loads(line, parse_constant=refuse)
    assert len(record.evaluations) == 3


def test_a_metric_that_cannot_be_measured_is_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    """The diversity of one picture per prompt."""
    plain = spec(16)
    config = override(plain.config, evaluation=EvaluationConfig(images=1))
    task = dataclasses.replace(plain.task, metrics=("diversity",))
    record = run(RunSpec("ddpo-is", config, task, 16), tmp_path / "run")
    assert all(math.isnan(line.metrics["diversity"]) for line in record.evaluations)
    assert '"diversity": null' in (tmp_path / "run" / "evaluations.jsonl").read_text(encoding="utf-8")
    assert read_run(tmp_path / "run").complete


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of the system that takes a part goes on; one that fails leaves no half line."""
    file = tmp_path / "log.jsonl"
    append_line(file, {"step": 1, "value": float("inf")})
    before = file.read_bytes()

    class Short(io.FileIO):
        def write(self, content: bytes) -> int:
            return super().write(content[:7])

    class Full(io.FileIO):
        def write(self, content: bytes) -> int:
            super().write(content[:7])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Full(path, "a"))
        with pytest.raises(OSError, match="No space left"):
            append_line(file, {"step": 2})
    assert file.read_bytes() == before
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Short(path, "a"))
    append_line(file, {"step": 2, "text": "long enough for three writes"})
    monkeypatch.undo()
    assert read_lines(file, "step") == [{"step": 1, "value": None}, {"step": 2, "text": "long enough for three writes"}]
