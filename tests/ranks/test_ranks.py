"""Several ranks train one policy as one process would: weights, images, checkpoints, and what ends them together."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from algorithms.checkpoints.file import read_checkpoint

PROGRAM = "ranked.py"
pytestmark = pytest.mark.slow
Reports = dict[str, list[dict[str, Any]]]
SAMPLED = ("latents", "images", "rewards", "evaluated", "evaluated rewards")
BOTH = pytest.mark.parametrize("name", ["ddpo-is", "rwr"])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of all tensors together, relative to b."""
    assert a.keys() == b.keys()
    difference = sum(float((a[name].double() - b[name].double()).square().sum()) for name in b)
    return (difference / sum(float(b[name].double().square().sum()) for name in b)) ** 0.5


@pytest.mark.parametrize(("name", "size"), [("ddpo-is", 2), ("ddpo-is", 3), ("rwr", 2), ("rwr", 3), ("nft", 2)])
def test_weights_and_moments_are_equal_to_the_bit_on_all_ranks(exact_reports: Reports, name: str, size: int) -> None:
    """After three iterations; so are counters, costs, statistics and the evaluation."""
    reports = exact_reports[f"{name} {size}"]
    assert len(reports) == size
    for other in reports[1:]:
        assert same(reports[0]["tensors"], other["tensors"])
        assert reports[0]["counters"] == other["counters"]
        for mine, theirs in zip(reports[0]["evaluation"], other["evaluation"], strict=True):
            assert torch.equal(mine, theirs)


def test_a_penalty_and_an_average_are_those_of_one_process(exact_reports: Reports) -> None:
    """The KL to the start pulls and is measured, and the moving average follows, as with one process."""
    (whole,), (first, second) = exact_reports["leashed 1"], exact_reports["leashed 2"]
    assert same(first["tensors"], second["tensors"])
    assert torch.equal(first["kl"], second["kl"])
    assert any(key.startswith("average/") for key in whole["tensors"])
    kept = [key for key in whole["tensors"] if key.startswith(("policy/", "average/"))]
    assert distance(*({key: report["tensors"][key] for key in kept} for report in (first, whole))) < 1e-4
    torch.testing.assert_close(first["kl"], whole["kl"], rtol=1e-2, atol=1e-4)
    assert float(whole["kl"].mean()) > 0
    unleashed = exact_reports["ddpo-is 1"][0]["tensors"]
    assert distance({k: v for k, v in whole["tensors"].items() if k in unleashed}, unleashed) > 1e-3


@BOTH
def test_weights_differ_where_gradients_are_not_synchronised(exact_reports: Reports, name: str) -> None:
    """The defect of trl 0.23.1, whose ranks diverge: without it this file's equalities would say nothing."""
    first, second = exact_reports[f"{name} unsynchronised"]
    assert distance(first["tensors"], second["tensors"]) > 1e-3


@pytest.mark.parametrize("name", ["ddpo-is", "rwr", "nft", "draft", "draft-lv", "opsd", "branched"])
def test_the_gradient_is_that_of_one_process(exact_reports: Reports, name: str) -> None:
    """The same images and rewards, summed in another order: float32 rounding, far below a share of 1 / ranks."""
    (whole,) = exact_reports[f"{name} gradients 1"]
    first, second = exact_reports[f"{name} gradients 2"]
    assert same(first["gradients"], second["gradients"])
    assert distance(first["gradients"], whole["gradients"]) < 1e-5


@BOTH
@pytest.mark.parametrize("size", [2, 3])
def test_training_is_that_of_one_process(exact_reports: Reports, name: str, size: int) -> None:
    """Weights after three iterations to rounding; counters, costs and evaluation's size exactly."""
    (whole,), split = exact_reports[f"{name} 1"], exact_reports[f"{name} {size}"][0]
    policy = {key: value for key, value in split["tensors"].items() if key.startswith("policy/")}
    assert distance(policy, {key: whole["tensors"][key] for key in policy}) < 1e-4
    assert split["counters"][:4] == whole["counters"][:4]
    assert [value.shape for value in split["evaluation"]] == [value.shape for value in whole["evaluation"]]


@pytest.mark.parametrize("size", [2, 3])
def test_images_are_the_same_whatever_the_number_of_ranks(exact_reports: Reports, size: int) -> None:
    """Whole trajectories, pictures and rewards of the first iteration; pictures and rewards of an evaluation.

    To float32 rounding, because other ranks make other chunks; all ranks of one run have the same bits.
    """
    (whole,), reports = exact_reports["sampled 1"], exact_reports[f"sampled {size}"]
    for report in reports:
        assert all(torch.equal(report[key], reports[0][key]) for key in SAMPLED)
        for key in SAMPLED:
            tolerance = 1 if report[key].dtype == torch.uint8 else 1e-3
            assert (report[key].double() - whole[key].double()).abs().max() <= tolerance, key


@BOTH
def test_a_run_saved_by_two_ranks_resumes_on_two_and_on_one(exact_reports: Reports, name: str) -> None:
    """On two it equals the run that never stopped bit for bit, on one to rounding."""
    never_stopped = exact_reports[f"{name} 2"][0]
    for report in exact_reports[f"{name} resumed 2"]:
        assert same(report["tensors"], never_stopped["tensors"])
        assert report["counters"] == never_stopped["counters"]
    (alone,) = exact_reports[f"{name} resumed 1"]
    policy = {key: value for key, value in alone["tensors"].items() if key.startswith("policy/")}
    assert distance(policy, {key: never_stopped["tensors"][key] for key in policy}) < 1e-4
    assert alone["counters"][:4] == never_stopped["counters"][:4]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_with_an_error_that_names_it(
    exact_reports: Reports, folder: Path, rank: int
) -> None:
    """SIGKILL in the second iteration: the survivor ends in time, and the first iteration's checkpoint loads."""
    reports = exact_reports[f"killed {rank}"]
    dead, survivor = reports[rank], reports[1 - rank]
    assert dead["status"] == -9
    kind, message = survivor["error"]
    assert kind == "RankError"
    assert message.startswith(f"rank {rank} of 2 died or did not answer within 60 s")
    assert survivor["seconds"] < 60
    assert read_checkpoint(folder / f"killed-{rank}.zip").state["iteration"] == 1


def test_a_rank_killed_in_an_update_is_named(exact_reports: Reports) -> None:
    """The survivor waits in the gradient's synchronisation, in torch's own code."""
    survivor, dead = exact_reports["killed in update"]
    assert dead["status"] == -9
    assert survivor["error"][0] == "RankError"
    assert survivor["error"][1].startswith("rank 1 of 2 died")


def test_a_reward_that_fails_on_one_rank_ends_all_with_its_error(exact_reports: Reports) -> None:
    """Each rank stands at the end of the first iteration: the second never happened."""
    first, second = exact_reports["failing"]
    assert first["error"][0] == second["error"][0] == "RewardError"
    assert "the server has gone" in second["error"][1]
    assert first["error"][1].startswith("rank 1 of 2 failed: RewardError")
    assert "the server has gone" in first["error"][1]
    assert first["counters"] == second["counters"] == [1, 72]


def test_the_worked_example_runs_on_several_ranks(exact_reports: Reports) -> None:
    """Equal bit for bit on both ranks, and to rounding on one; its log averages over ranks too."""
    first, second = exact_reports["worked example 2"]
    (alone,) = exact_reports["worked example 1"]
    assert same(first["tensors"], second["tensors"])
    policy = {key: value for key, value in first["tensors"].items() if key.startswith("policy/")}
    assert distance(policy, {key: alone["tensors"][key] for key in policy}) < 1e-4
    assert first["counters"] == second["counters"] == alone["counters"]


def test_one_ranks_callback_stops_all(exact_reports: Reports) -> None:
    """They stop together after the rollout, which is dropped."""
    assert [report["counters"] for report in exact_reports["stopped"]] == [[1, 72]] * 2


def test_memory_that_runs_out_on_one_rank_makes_all_chunks_smaller(exact_reports: Reports) -> None:
    """Half of 4 rows on both ranks, or they would not draw the images of one process."""
    first, second = exact_reports["little memory"]
    assert first["chunk_size"] == second["chunk_size"] == 2
    assert same(first["tensors"], second["tensors"])


def test_memory_that_runs_out_in_an_update_ends_all(exact_reports: Reports) -> None:
    """The other rank waits for the gradient, and learns that its connection broke."""
    first, second = exact_reports["little memory in update"]
    assert second["error"][0] == "OutOfMemory"
    assert "memory ran out in iteration 0 with 4 rows per forward pass" in second["error"][1]
    assert first["error"][0] == "RankError"
    assert first["error"][1].startswith("rank 1 of 2 died")


def test_a_rank_that_hangs_ends_the_others_within_the_timeout(exact_reports: Reports) -> None:
    """SIGSTOP, which leaves its connections open; ten seconds to wait, and five for those who live to say so."""
    survivor, stopped = exact_reports["hung"]
    assert stopped["status"] == -9  # killed by the test, after the other had ended
    assert survivor["error"][0] == "RankError"
    assert survivor["error"][1].startswith("rank 1 of 2 died or did not answer within 10 s")
    assert 10 < survivor["seconds"] < 60


def test_ranks_that_cannot_share_the_environments_are_refused(exact_reports: Reports) -> None:
    """With the number of ranks that could."""
    for report in exact_reports["too many"]:
        assert report["error"] == (
            "ValueError",
            "num_envs (3) must be a multiple of the number of ranks (2), which share the environments; start 1 "
            "instead, or choose another num_envs.",
        )


def contents(folder: Path) -> tuple[Any, dict[str, bytes]]:
    """A folder's log without the wall clock, and its pictures, weights and final checkpoint's tensors."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in ("clock", "cost/seconds")} for line in lines]
    files = {file.name: file.read_bytes() for file in [*folder.glob("images/*"), *folder.glob("pipeline/*")]}
    tensors = read_checkpoint(folder / "checkpoint.zip").tensors
    return log, files | {name: value.numpy().tobytes() for name, value in tensors.items()}


def test_a_runs_folder_stopped_and_resumed_by_two_ranks(exact_reports: Reports, folder: Path) -> None:
    """The log, the pictures, the exported weights and the checkpoint are those of two ranks never stopped, bit for bit.

    A combined reward is normalised by what both ranks measure together.
    """
    assert [report["complete"] for report in exact_reports["folder whole 2"]] == [True, True]
    assert [report["complete"] for report in exact_reports["folder in parts 2"]] == [True, True]
    assert contents(folder / "in parts") == contents(folder / "whole")


def test_a_runs_folder_of_two_ranks_ended_by_one_process(exact_reports: Reports, folder: Path) -> None:
    """The log has the same lines, each once, and the same numbers to rounding."""
    assert exact_reports["folder mixed 1"][0]["complete"]
    (mixed, _), (whole, _) = contents(folder / "mixed"), contents(folder / "whole")
    assert [line["step"] for line in mixed] == [line["step"] for line in whole]
    for mine, expected in zip(mixed, whole, strict=True):
        assert mine == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ddpo-is", "rwr"])
def test_lora_on_stable_diffusion(sd_reports: Reports, name: str) -> None:
    """Guidance 3: gradients and weights equal bit for bit on both ranks, and those of one process to rounding."""
    (whole,) = sd_reports[f"{name} gradients 1"]
    first, second = sd_reports[f"{name} gradients 2"]
    assert same(first["gradients"], second["gradients"])
    assert distance(first["gradients"], whole["gradients"]) < 1e-4
    first, second = sd_reports[f"{name} 2"]
    assert same(first["tensors"], second["tensors"])
    assert first["counters"][:4] == sd_reports[f"{name} 1"][0]["counters"][:4]


@pytest.mark.long
def test_images_of_stable_diffusion_are_equal_to_the_bit(sd_reports: Reports) -> None:
    """With guidance, text encoder and VAE, on one rank and on two."""
    (whole,) = sd_reports["sampled 1"]
    for report in sd_reports["sampled 2"]:
        assert all(torch.equal(report[key], whole[key]) for key in SAMPLED)


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    "accelerate with FSDP": ["accelerate.commands.launch", "--use_fsdp", "--num_processes", "2", "--num_machines", "1"],
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
}


def worker(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of a rank that a launcher has started."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == str(rank))


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_train_under_a_launcher(tmp_path: Path, program_environment: dict[str, str], launcher: str) -> None:
    """The documented command; rank 1 is killed after the first checkpoint, and the same command ends the run."""
    folder = tmp_path / "run"
    options = ["--model", "exact-mixture", "--reward", "exact-linear", "--policy.trainable", "full", "--threads", "1"]
    options += ["--images-per-iteration", "32", "--num-envs", "16", "--reward-queries", "1280"]
    options += ["--checkpoint-every", "1", "--evaluation.images", "0", "--folder", str(folder)]
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "benchmarks", "train", "ddpo-is", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=program_environment,
    )
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint.zip").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker(process, 1).kill()
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert re.search(r"rank *: 1 ", output)  # the launcher's summary of what failed first
    assert read_checkpoint(folder / "checkpoint.zip").state["iteration"] < 40
    done = subprocess.run(command, env=program_environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done:") == 1  # the first rank alone prints
    of_a_rank = "32 B" if "FSDP" in launcher else "64 B"
    assert re.search(rf"trained weights, float32 +{of_a_rank}\n", done.stdout)
    steps = [json.loads(line)["time/iterations"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))
