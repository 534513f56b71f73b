"""A run's safeguards: it stops early and says why, keeps its best checkpoint, and decides alike when resumed."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import ALGORITHMS, DDPO, EvaluationConfig
from algorithms.checkpoints.file import read_checkpoint
from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.runs.folder import read_spec, replace_by_link
from benchmarks.runs.run import read_run, run
from benchmarks.runs.safeguards import Safeguards
from benchmarks.runs.spec import RunSpec, TaskConfig, Writing
from benchmarks.runs.watch import value_of

TASK = TaskConfig("exact-gaussian", "exact-linear", num_inference_steps=4)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def spec_of(queries: int = 96, **safeguards: Any) -> RunSpec:
    """Six iterations of 16 images with an evaluation at each; the linear reward rises all the time."""
    changes = {"images_per_iteration": 16, "num_envs": 8, "images_per_prompt": 8, "trainable": "full", "chunk_size": 8}
    config = override(
        ALGORITHMS["ddpo-is"].config, evaluation=EvaluationConfig(images=8), learning_rate=0.05, kl_to_start=True,
        ema_decay=0.5, **changes,
    )  # fmt: skip
    return RunSpec("ddpo-is", config, TASK, queries, Safeguards(**safeguards))


class StopAfter:
    """Ask to stop at the n-th question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def weights(file: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in read_checkpoint(file).tensors.items()}


def test_values_of_a_line() -> None:
    line = {
        "rewards": [1.0, 2.0], "metrics": {"diversity": 3.0, "recognised": None},
        "held_out": {"rewards": [4.0], "metrics": {"diversity": 5.0}},
    }  # fmt: skip
    assert value_of(line, "reward") == 1.5
    assert value_of(line, "held_out/reward") == 4.0
    assert value_of(line, "diversity") == 3.0
    assert value_of(line, "held_out/diversity") == 5.0
    assert math.isnan(value_of(line, "recognised"))
    assert math.isnan(value_of({"rewards": [1.0], "metrics": {}}, "held_out/reward"))


def test_a_run_that_stops_at_its_kl_is_complete_and_stops_there_again_when_resumed(tmp_path: Path) -> None:
    """The limit lies between the KLs of iterations 3 and 4. One run is left alone, one is stopped twice on the way."""
    free = run(spec_of(), tmp_path / "free")
    kls = [line.metrics["kl_to_start"] for line in free.evaluations]
    assert kls[0] == 0.0
    assert kls[3] < kls[4]
    assert max(kls[:4]) < kls[4]
    spec = spec_of(stop_at_kl=(kls[3] + kls[4]) / 2)
    whole = run(spec, tmp_path / "whole")
    assert whole.complete
    assert whole.stopped_early is not None
    assert f"{kls[4]:.4g} nats per image at iteration 4" in whole.stopped_early
    assert [line.iteration for line in whole.evaluations] == [0, 1, 2, 3, 4]
    assert (tmp_path / "whole" / "pipeline" / "exact_model.safetensors").is_file()
    for questions in (11, 9):  # of 8 an iteration
        assert not run(
            spec, tmp_path / "parts", should_stop=StopAfter(questions), writing=Writing(checkpoint_every=1)
        ).complete
    for _ in range(2):  # the second time it is over already
        resumed = run(spec, tmp_path / "parts")
        assert resumed.stopped_early == whole.stopped_early
        assert weights(tmp_path / "parts" / "checkpoint.zip") == weights(tmp_path / "whole" / "checkpoint.zip")
        assert [line.rewards for line in resumed.evaluations] == [line.rewards for line in whole.evaluations]
    assert free.stopped_early is None


def test_it_stops_once_a_metric_has_fallen_and_the_best_checkpoint_stays(tmp_path: Path) -> None:
    """Overoptimisation: the linear reward has no end, the distance to (1, 1) is least on the way and then grows."""
    metric = "exact-quadratic"
    free = run(spec_of(160, keep_best=metric), tmp_path / "free")
    measured = [line.metrics[metric] for line in free.evaluations]
    best = measured.index(max(measured))
    assert 0 < best < best + 2 < len(measured) - 1
    assert max(measured) == max(measured[: best + 3])
    spec = spec_of(160, stop_when_metric_falls=metric, patience=2, keep_best=metric)
    whole = run(spec, tmp_path / "whole")
    assert whole.stopped_early is not None
    assert f"{metric} was not better than its best, {max(measured):.6g}, in 2 evaluations" in whole.stopped_early
    assert [line.metrics[metric] for line in whole.evaluations] == measured[: best + 3]
    assert whole.best == free.best == {"metric": metric, "value": max(measured), "iteration": best}
    run(spec_of(16 * best), tmp_path / "shorter")
    assert weights(tmp_path / "whole" / "best.zip") == weights(tmp_path / "shorter" / "checkpoint.zip")
    for questions in (12, 9):  # and what it decides when it is resumed is the same, bit for bit
        assert not run(spec, tmp_path / "parts", should_stop=StopAfter(questions)).complete
    resumed = run(spec, tmp_path / "parts")
    assert (resumed.best, resumed.stopped_early) == (whole.best, whole.stopped_early)
    assert weights(tmp_path / "parts" / "best.zip") == weights(tmp_path / "whole" / "best.zip")


def test_the_best_of_a_rising_metric_is_the_last(tmp_path: Path) -> None:
    record = run(spec_of(keep_best="reward"), tmp_path / "run")
    means = [sum(line.rewards) / 8 for line in record.evaluations]
    assert record.best is not None
    assert record.best["value"] == pytest.approx(max(means))
    assert record.best["iteration"] == means.index(max(means)) > 0
    kept = DDPO.load(tmp_path / "run" / "best.zip")
    assert kept.iteration == record.best["iteration"]
    assert kept.average is not None


def test_specification_with_safeguards_survives_json_and_old_folders_have_none(tmp_path: Path) -> None:
    spec = spec_of(stop_at_kl=3.0, stop_when_metric_falls="clip_score", keep_best="diversity")
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.metrics == ("clip_score", "diversity")
    old = spec.to_json()
    del old["safeguards"]
    (tmp_path / "run.json").write_text(json.dumps({"spec": old}))
    assert read_spec(tmp_path).safeguards == Safeguards()


def test_the_command_line_says_why_it_stopped_and_sample_takes_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    options = ["--model", "exact-gaussian", "--reward", "exact-linear", "--num-inference-steps", "4", "--threads", "1"]
    options += ["--images-per-iteration", "16", "--num-envs", "16", "--policy.trainable", "full", "--kl-to-start"]
    options += ["--evaluation.images", "8", "--stop-at-kl", "1e-6", "--keep-best", "reward", "--learning-rate", "0.05"]
    assert main(["train", "ddpo-is", *options, "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "stopped early: the KL to the starting model is" in said
    assert "best reward" in said
    assert "best.zip" in said
    record = read_run(folder)
    assert record.best is not None
    drawn = {}
    for name in ("last", "best"):
        output = tmp_path / f"{name}.png"
        words = ["sample", "--run", str(folder), "--prompts", "anywhere", "--images", "2", "--output", str(output)]
        assert main([*words, "--checkpoint", name]) == 0
        drawn[name] = output.read_bytes()
    # They are the same weights if and only if the last evaluation was the best.
    assert (drawn["last"] == drawn["best"]) == (record.best["iteration"] == record.evaluations[-1].iteration)


def test_a_link_replaces_and_is_independent_of_what_replaces_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "checkpoint.zip", tmp_path / "best.zip"
    for content in (b"first", b"second"):
        source.unlink(missing_ok=True)
        source.write_bytes(content)
        replace_by_link(source, target)
        assert target.read_bytes() == content
    replace_by_link(source, target)  # a link to itself
    source.unlink()
    assert target.read_bytes() == b"second"
    assert [file.name for file in tmp_path.iterdir()] == ["best.zip"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop_at_kl": 0.0}, "positive, finite number of nats"),
        ({"stop_at_kl": float("nan")}, "positive, finite number of nats"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"keep_best": "beauty"}, "unknown metric 'beauty'"),
        ({"stop_when_metric_falls": "held_out/beauty"}, "unknown metric 'beauty'"),
        ({"keep_best": "held_out/reward"}, "needs held-out prompts; set --evaluation.held-out-prompts"),
    ],
)
def test_bad_safeguards_are_refused_before_anything_is_loaded(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**change)


def test_safeguards_without_what_they_need_are_refused() -> None:
    spec = spec_of()
    unmeasured = dataclasses.replace(spec.config, kl_to_start=False)
    with pytest.raises(ValueError, match=r"stop_at_kl needs the KL to the starting model.*--kl-to-start"):
        dataclasses.replace(spec, config=unmeasured, safeguards=Safeguards(stop_at_kl=1.0))
    blind = override(spec.config, images=0)
    with pytest.raises(ValueError, match=r"decide at evaluations, of which there are none; set --evaluation\.images"):
        dataclasses.replace(spec, config=blind, safeguards=Safeguards(keep_best="reward"))


@pytest.mark.parametrize("watched", [{"stop_when_metric_falls": "diversity"}, {"keep_best": "clip_diversity"}])
def test_diversity_without_two_images_of_a_prompt_is_not_watched(watched: dict[str, str], tmp_path: Path) -> None:
    """It would be NaN at every evaluation: the run would never stop, and keep no checkpoint."""
    message = r"but 8 evaluation images of 10 prompts .*set --evaluation\.images-per-prompt to 2 or more"
    task = TaskConfig(prompts="ten-animals")
    spec = spec_of()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(spec, task=task, safeguards=Safeguards(**watched))
    pairs = dataclasses.replace(spec.config.evaluation, images_per_prompt=2)
    for enough in (override(spec.config, images=11), dataclasses.replace(spec.config, evaluation=pairs)):
        dataclasses.replace(spec, task=task, config=enough, safeguards=Safeguards(**watched))
    dataclasses.replace(spec, task=task, safeguards=Safeguards(keep_best="reward"))
    held_out = override(spec.config, images=9, held_out_prompts="animals@held-out")
    split = dataclasses.replace(spec, task=TaskConfig(prompts="animals@train"), config=held_out)
    with pytest.raises(ValueError, match="held_out/diversity compares images of one prompt, but 9 evaluation"):
        dataclasses.replace(split, safeguards=Safeguards(keep_best="held_out/diversity"))
    # The model's own prompts, all 45, are known once it is loaded.
    own = dataclasses.replace(spec, task=TaskConfig(), config=override(spec.config, images=45))
    with pytest.raises(ValueError, match="45 evaluation images of 45 prompts"):
        run(dataclasses.replace(own, safeguards=Safeguards(**watched)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sampling_the_best_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--checkpoint", "best", "--output", str(tmp_path / "a.png")]) == 2
    assert "needs a run that was trained with" in capsys.readouterr().err
    run(spec_of(16), tmp_path / "run")
    words = ["sample", "--run", str(tmp_path / "run"), "--checkpoint", "best", "--output", str(tmp_path / "a.png")]
    assert main(words) == 2
    assert "holds no best.zip; expected a run that was trained with --keep-best" in capsys.readouterr().err
