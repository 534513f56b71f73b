"""Sharded weights (FSDP) are trained as DDP trains whole ones, and refused where they would not be sharded."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import algorithms.setup
from algorithms import DDPO
from algorithms.checkpoints.file import read_checkpoint
from algorithms.parallel.sharding import check_sharded, shard

PROGRAM = "sharded.py"
pytestmark = pytest.mark.slow
Reports = dict[str, list[dict[str, Any]]]
RUNS = pytest.mark.parametrize(("name", "size"), [("ddpo-is", 2), ("ddpo-is", 3), ("rwr", 2), ("nft", 2), ("draft", 2)])


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Tensors equal bit for bit, and counters too."""
    torch.testing.assert_close(a["tensors"], b["tensors"], rtol=0, atol=0)
    assert a["counters"] == b["counters"]


def assert_near(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Weights equal to float32 rounding, and counters exactly, the statistics of rewards aside."""
    kept = [{key: value for key, value in report["tensors"].items() if "optimizer/" not in key} for report in (a, b)]
    torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-6)
    assert a["tensors"].keys() == b["tensors"].keys()
    assert a["counters"][:4] == b["counters"][:4]


@RUNS
def test_each_rank_holds_a_part_of_the_weights(exact_reports: Reports, name: str, size: int) -> None:
    """All parts together are the whole. Of tensors of four rows, three ranks hold two, two and none."""
    reports = exact_reports[f"{name} {size}"]
    assert max(report["here"] for report in reports) == 8
    assert sum(report["here"] for report in reports) == reports[0]["total"] == 16


@RUNS
def test_gathered_weights_and_moments_are_equal_to_the_bit_on_all_ranks(
    exact_reports: Reports, name: str, size: int
) -> None:
    """After three iterations; so are counters, statistics and the evaluation."""
    first, *others = exact_reports[f"{name} {size}"]
    for other in others:
        assert_same(first, other)
        assert all(map(torch.equal, first["evaluation"], other["evaluation"]))


@RUNS
def test_training_is_that_of_ddp(exact_reports: Reports, name: str, size: int) -> None:
    """The weights of three iterations to float32 rounding: gradients are scaled, clipped and averaged alike."""
    assert_near(exact_reports[f"{name} {size}"][0], exact_reports[f"{name} ddp"][0])


def test_a_penalty_and_an_average_are_those_of_ddp(exact_reports: Reports) -> None:
    """The starting weights and the averages are put in the weights' place in parts."""
    ours, theirs = exact_reports["leashed"][0], exact_reports["leashed ddp"][0]
    assert_near(ours, theirs)
    torch.testing.assert_close(ours["kl"], theirs["kl"], rtol=1e-3, atol=1e-5)
    assert float(ours["kl"].mean()) > 0
    assert not torch.equal(ours["tensors"]["average/means"], ours["tensors"]["policy/means"])
    assert_same(*exact_reports["leashed"])


def test_the_ratio_is_exactly_one_before_the_first_update(exact_reports: Reports) -> None:
    """Sampling and scoring gather the same weights; the gradient is none the less there."""
    for report in exact_reports["first update"]:
        assert report["logged"]["train/log_ratio_abs_max"] == 0.0
        assert report["logged"]["train/grad_norm"] > 0


def test_a_sharded_run_resumes_sharded_with_ddp_and_on_one_process(exact_reports: Reports) -> None:
    """Sharded it equals the run that never stopped bit for bit, else to rounding."""
    never_stopped = exact_reports["ddpo-is 2"][0]
    for report in exact_reports["resumed"]:
        assert_same(report, never_stopped)
    for size in (1, 2):
        assert_near(exact_reports[f"resumed by {size}"][0], never_stopped)


def test_a_run_saved_by_ddp_resumes_sharded(exact_reports: Reports) -> None:
    """To rounding the run that was sharded from its start."""
    assert_near(exact_reports["resumed from ddp"][0], exact_reports["ddpo-is 2"][0])


def test_an_export_holds_whole_averaged_weights(exact_reports: Reports) -> None:
    """They are those that get_parameters gathers."""
    for report in exact_reports["exported"]:
        assert report["file"].keys() == report["average"].keys() == {"means", "log_stds", "logits"}
        torch.testing.assert_close(report["file"], report["average"], rtol=0, atol=0)


def test_a_gradient_that_is_nan_on_one_rank_skips_the_update_on_all(exact_reports: Reports) -> None:
    """One of the four is counted as skipped."""
    first, second = exact_reports["not finite"]
    assert_same(first, second)
    assert first["skipped"] == second["skipped"] == 1
    assert first["counters"][2] == 3
    assert all(bool(value.isfinite().all()) for value in first["tensors"].values())


def test_the_memory_of_a_rank_is_half(exact_reports: Reports) -> None:
    """Of trained weights, their moments, and the copies kept of them."""
    (alone,) = exact_reports["estimated alone"]
    for report in exact_reports["estimated"]:
        assert (report["trained"], report["kept"]) == (alone["trained"] // 2, alone["kept"] // 2)
        assert "rollout of 12 images" in report["text"]


def test_a_killed_rank_ends_the_others_with_an_error_that_names_it(exact_reports: Reports, folder: Path) -> None:
    """The survivor waits for the dead rank's part of the weights, in torch's own code."""
    survivor, dead = exact_reports["killed"]
    assert dead["status"] == -9
    assert survivor["error"][0] == "RankError"
    assert survivor["error"][1].startswith("rank 1 of 2 died")
    assert read_checkpoint(folder / "killed.zip").state["iteration"] == 1


def test_memory_that_runs_out_ends_all_at_once(exact_reports: Reports) -> None:
    """The others wait in the middle of a forward pass."""
    first, second = exact_reports["little memory"]
    assert (second["error"][0], first["error"][0]) == ("OutOfMemory", "RankError")
    assert "memory ran out in iteration 0 with 4 rows per forward pass" in second["error"][1]
    assert first["error"][1].startswith("rank 1 of 2 died")
    assert max(first["seconds"], second["seconds"]) < 60


def test_a_runs_folder(exact_reports: Reports, folder: Path) -> None:
    """Log, checkpoints, pictures and exported weights are written, as with DDP."""
    assert [report["complete"] for report in exact_reports["folder"]] == [True, True]
    assert (folder / "whole" / "pipeline" / "exact_model.safetensors").is_file()
    assert read_checkpoint(folder / "whole" / "checkpoint.zip").tensors["policy/means"].shape == (4, 2)


def test_weights_that_a_rank_holds_alone_are_refused(exact_reports: Reports) -> None:
    """One row cannot be shared; the rank without it learns of the other's end when it next waits for it."""
    first, second = exact_reports["one component"]
    assert first["error"][0] == "ValueError"
    assert "each of 2 ranks a part of the weights, but this rank holds all 4 values" in first["error"][1]
    assert second["trains"] == ["means", "log_stds", "logits"]


def test_weights_that_are_whole_on_every_rank_are_refused() -> None:
    """As Accelerate leaves them on gloo, where it makes DDP of FSDP without a word."""
    with pytest.raises(ValueError, match="'weight' is whole on every rank"):
        check_sharded(nn.Linear(2, 2), 2)


def test_a_torch_without_fully_shard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.6."""
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", None)
    with pytest.raises(ValueError, match="FSDP needs torch"):
        shard(nn.Linear(2, 2), "cpu", 2)


def test_moments_of_8_bits_are_refused(monkeypatch: pytest.MonkeyPatch, exact: dict[str, Any]) -> None:
    """bitsandbytes does not support sharded weights."""
    import gymnasium

    class TwoRanks:
        rank, size, sharded, is_first = 0, 2, True, True

    monkeypatch.setattr(algorithms.setup, "current_ranks", TwoRanks)
    monkeypatch.setattr(algorithms.setup, "check_optimizer", lambda config: None)
    with pytest.raises(ValueError, match="optimizer 'adamw8bit' does not support sharded weights"):
        DDPO(gymnasium.make("DiffusionDenoise-v0", **exact), trainable="full", optimizer="adamw8bit")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["lora", "full", "both"])
def test_stable_diffusion(sd_reports: Reports, kind: str) -> None:
    """Guidance 3, by blocks: with adapters, with all weights and gradient checkpointing, with a text encoder."""
    first, second = sd_reports[kind]
    assert_same(first, second)
    ddp = sd_reports[f"{kind} ddp"][0]
    assert first["tensors"].keys() == ddp["tensors"].keys()
    ours, theirs = (
        torch.cat([report["gradients"][key].flatten() for key in ddp["gradients"]]) for report in (first, ddp)
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
    assert 0.45 < first["here"] / first["total"] < 0.55
    assert first["logged"]["train/log_ratio_abs_max"] == 0.0
