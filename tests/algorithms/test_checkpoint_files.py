"""Checkpoint files: whole or refused with the reason, never executed, never half-written."""

import errno
import io
import os
import pickle
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from algorithms import DDPO, RWR, DDPOConfig
from algorithms.checkpoints.file import checkpoint_path, read_checkpoint, write_checkpoint
from diffusion_gym import LoRAConfig
from diffusion_gym.rewards import Linear

STATE = {"algorithm": "DDPO", "é": [1, 2.5, None], "nested": {"a": 1 / 3}}
TENSORS = {"policy/w": torch.arange(6.0).reshape(2, 3), "optimizer/w/step": torch.tensor(3.0)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small checkpoint."""
    path = tmp_path / "run.zip"
    write_checkpoint(path, STATE, TENSORS)
    return path


def test_round_trip(file: Path) -> None:
    checkpoint = read_checkpoint(file)
    assert {name: checkpoint.state[name] for name in STATE} == STATE
    assert set(checkpoint.tensors) == set(TENSORS)
    assert all(torch.equal(checkpoint.tensors[name], TENSORS[name]) for name in TENSORS)


def test_zip_ending_is_added_once(tmp_path: Path) -> None:
    """As Stable-Baselines3 does; a dot in the name is no ending."""
    assert checkpoint_path(tmp_path / "run") == checkpoint_path(tmp_path / "run.zip") == tmp_path / "run.zip"
    assert checkpoint_path("v1.5") == Path("v1.5.zip")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at .*nothing\.zip"):
        read_checkpoint(tmp_path / "nothing")


def test_every_truncation_is_refused(file: Path) -> None:
    """At 60 lengths from nothing to one byte short."""
    content = file.read_bytes()
    for length in [*range(0, len(content), len(content) // 59), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"truncated or altered|is not a checkpoint"):
            read_checkpoint(file)


def test_an_altered_byte_is_refused_or_harmless(file: Path) -> None:
    """Every byte with one bit flipped: a ValueError, or (in a zip's date fields and the like) the same content.

    In the members themselves every flip is refused.
    """
    content = file.read_bytes()
    original = read_checkpoint(file)
    with zipfile.ZipFile(file) as archive:
        members = [archive.read(name) for name in archive.namelist()]
    inside = {content.index(member) + offset for member in members for offset in range(len(member))}
    rng, refused = random.Random(0), set()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(flipped))
        try:
            checkpoint = read_checkpoint(file)
        except ValueError:
            refused.add(position)
            continue
        assert checkpoint.state == original.state, position
        assert all(torch.equal(checkpoint.tensors[name], value) for name, value in TENSORS.items()), position
    assert inside <= refused


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    """A Stable-Baselines3 checkpoint, an empty archive, JSON that is no object, a file that is no zip."""
    foreign = {
        "sb3": {"data": b"{}", "policy.pth": b"", "_stable_baselines3_version": b"2"},
        "empty": {},
        "list": {"state.json": b"[1]", "tensors.safetensors": (8).to_bytes(8, "little") + b"{}      "},
    }
    for name, members in foreign.items():
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for member, value in members.items():
                archive.writestr(member, value)
        with pytest.raises(ValueError, match="checkpoint"):
            read_checkpoint(path)
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(ValueError, match="truncated or altered"):
        read_checkpoint(tmp_path / "text.zip")


def test_a_future_format_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        state, tensors = archive.read("state.json"), archive.read("tensors.safetensors")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("state.json", state.replace(b'"format": 1', b'"format": 2'))
        archive.writestr("tensors.safetensors", tensors)
    with pytest.raises(ValueError, match="format 2; this version reads 1"):
        read_checkpoint(file)


class Malicious:
    """Unpickling it creates the file ``executed``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("where", ["plain", "torch", "members"])
def test_a_pickle_is_never_executed(tmp_path: Path, make_env: Callable, where: str) -> None:
    """As the file itself, as torch.save writes it, and in place of both members."""
    marker, path = tmp_path / "executed", tmp_path / "run.zip"
    payload = pickle.dumps(Malicious(marker))
    if where == "plain":
        path.write_bytes(payload)
    elif where == "torch":
        torch.save(Malicious(marker), path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("state.json", payload)
            archive.writestr("tensors.safetensors", payload)
    for load in (read_checkpoint, DDPO.load):
        with pytest.raises(ValueError, match="checkpoint"):
            load(path)
    assert not marker.exists()
    pickle.loads(payload)  # the payload does work: the absence above means something
    assert marker.exists()


def full_disk(*args: object) -> None:
    """Stands for a system call on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


class FullFile(io.BufferedRandom):
    """A file that takes 100 bytes."""

    def write(self, content: object) -> int:
        super().write(bytes(content)[:100])  # type: ignore[call-overload]
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_the_old_checkpoint(file: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The error comes through, the old file is whole, and no temporary file stays behind."""
    before = file.read_bytes()
    if call == "write":
        monkeypatch.setattr(os, "fdopen", lambda handle, mode: FullFile(io.FileIO(handle, "r+")))
    else:
        monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(file, {"algorithm": "new"}, TENSORS)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert read_checkpoint(file).state["algorithm"] == "DDPO"
    assert list(file.parent.iterdir()) == [file]


def test_an_interrupt_while_writing_leaves_no_temporary_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no Exception; the file beside the old one must go all the same."""

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(file, {"algorithm": "new"}, TENSORS)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_file_mode_follows_the_umask(file: Path) -> None:
    """A temporary file's 0600 would lock colleagues out of a shared folder."""
    plain = file.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


# -- what load() refuses, and what it restores -------------------------------------------------------------------------


def small(make_env: Callable, **kwargs: object) -> DDPO:
    """A quick DDPO on the exact Gaussian."""
    return DDPO(make_env(steps=3), trainable="full", images_per_iteration=4, num_envs=4, **kwargs)


def test_load_restores_everything(make_env: Callable, tmp_path: Path, digest: Callable) -> None:
    """Weights, moments, counters, costs, configuration, statistics, and the environment."""
    algorithm = small(make_env, learning_rate=0.01, eta=0.7, log_prob_reduction="sum").learn(2 * 4 * 3)
    algorithm.save(tmp_path / "run")
    loaded = DDPO.load(tmp_path / "run")
    assert digest(loaded) == digest(algorithm)
    assert loaded.config == algorithm.config
    assert loaded.config.policy.eta == 0.7
    assert (loaded.iteration, loaded.num_timesteps, loaded._n_updates) == (2, 24, 4)
    assert loaded.costs == algorithm.costs
    assert loaded.statistics.state_dict() == algorithm.statistics.state_dict()
    assert loaded.mdp.prompts == algorithm.mdp.prompts
    assert loaded.mdp.num_inference_steps == 3


def test_load_takes_an_environment_and_changes(make_env: Callable, tmp_path: Path) -> None:
    """A reward of the user's own needs ``env``; fields of the configuration may be changed on the way."""

    def mine(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts))

    DDPO(make_env(reward=mine), trainable="full", images_per_iteration=4, num_envs=4).save(tmp_path / "run")
    with pytest.raises(ValueError, match="pass the environment"):
        DDPO.load(tmp_path / "run")
    loaded = DDPO.load(tmp_path / "run", env=make_env(reward=mine), learning_rate=0.5, num_envs=2)
    assert (loaded.config.learning_rate, loaded.config.num_envs) == (0.5, 2)


def test_a_registered_reward_with_other_arguments_is_not_replaced(make_env: Callable, tmp_path: Path) -> None:
    """Linear((0, 1)) has the registered name of Linear((1, 0)): rebuilding it by name would train on another reward."""
    small_env = make_env(reward=Linear((0.0, 1.0)))
    DDPO(small_env, trainable="full", images_per_iteration=4, num_envs=4).save(tmp_path / "run")
    points = torch.tensor([[0.0, 3.0]])[..., None, None]
    try:
        loaded = DDPO.load(tmp_path / "run")
    except ValueError:
        return  # refused: pass the environment
    assert float(loaded.mdp.score(points, ["anywhere"]).rewards) == pytest.approx(3.0, abs=1e-3)


def test_another_algorithm_is_refused(make_env: Callable, tmp_path: Path) -> None:
    small(make_env).save(tmp_path / "run")
    with pytest.raises(ValueError, match="checkpoint of DDPO, not of RWR"):
        RWR.load(tmp_path / "run")


def test_another_model_is_refused(make_env: Callable, tmp_path: Path) -> None:
    small(make_env).save(tmp_path / "run")
    with pytest.raises(ValueError, match="exact-gaussian"):
        DDPO.load(tmp_path / "run", env=make_env("exact-mixture"))


def test_other_adapters_are_refused(make_env: Callable, tiny_sd: str, tmp_path: Path) -> None:
    """Another LoRA rank has other shapes, and full weights other names."""
    env = make_env(tiny_sd, reward="compressibility", prompts=["cat"])
    DDPO(env, DDPOConfig(images_per_iteration=4, num_envs=4), lora=LoRAConfig(rank=2)).save(tmp_path / "run")
    with pytest.raises(ValueError, match="another shape"):
        DDPO.load(tmp_path / "run", env=env, rank=4)
    with pytest.raises(ValueError, match="lacks"):
        DDPO.load(tmp_path / "run", env=env, trainable="full")


def test_low_precision_models_are_rebuilt_as_they_were(make_env: Callable, tiny_sd: str, tmp_path: Path) -> None:
    """A float32 UNet in place of bfloat16 would go on from other images."""
    env = make_env(tiny_sd, reward="compressibility", prompts=["cat"], dtype="bfloat16")
    algorithm = DDPO(env, images_per_iteration=4, num_envs=4)
    algorithm.save(tmp_path / "run")
    loaded = DDPO.load(tmp_path / "run")
    before, after = (
        {name: value.dtype for name, value in a.policy.denoiser.named_parameters()} for a in (algorithm, loaded)
    )
    assert after == before


def test_fixed_content_refuses_exclude_and_include(make_env: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fixed content"):
        small(make_env).save(tmp_path / "run", exclude=["policy"])
