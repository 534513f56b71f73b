"""One seed, one run: in two processes, after a stop, and whatever torch's global generator says; all bit for bit.

In one process ``check_algorithm`` does this for every algorithm (test_check.py).
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

import diffusion_gym
from algorithms import DDPO, DDPOConfig, EvaluationConfig
from algorithms.evaluation import evaluate

PROGRAM = Path(__file__).with_name("other_process.py")
CASES = ["ddpo-is", "ddpo-is lora", "rwr lora", "nft lora"]
#: When the checkpoints are taken: after iteration 1; in the middle of iteration 2's rollout; at its end, before the
#: update; and by Ctrl-C in the middle of it.
MOMENTS = ["between", "in rollout", "end of rollout", "interrupted"]


def load_program() -> ModuleType:
    """Import the program's file; pytest's importlib mode knows no sibling imports."""
    spec = importlib.util.spec_from_file_location("other_process", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SaveAt(BaseCallback):
    """Saves a checkpoint at one moment of the second iteration, and stops; "interrupted" raises what Ctrl-C raises."""

    def __init__(self, moment: str, path: Path) -> None:
        super().__init__()
        self.moment, self.path = moment, path

    def _on_step(self) -> bool:
        if self.n_calls == 6 + 5:  # an iteration is two rounds of 4 environments with T = 3: in its second round
            if self.moment == "interrupted":
                raise KeyboardInterrupt
            if self.moment == "in rollout":
                self.model.save(self.path)
                return False
        return True

    def _on_rollout_end(self) -> None:
        if self.moment == "end of rollout" and self.model.iteration == 1:
            self.model.save(self.path)


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory, tiny_sd: str) -> tuple[dict[str, str], dict[str, str]]:
    """This process's digests of runs that never stopped, and the other process's of fresh and of resumed runs."""
    torch.set_num_threads(1)
    program, folder = load_program(), tmp_path_factory.mktemp("runs")
    (folder / "tiny_sd").write_text(tiny_sd)
    here: dict[str, str] = {}
    for case in CASES:
        for moment in MOMENTS if case == "ddpo-is" else MOMENTS[:2]:
            algorithm, path = program.build(case, tiny_sd), folder / f"{case},{moment}.zip"
            if moment == "between":
                program.learn(algorithm, 1)
                algorithm.save(path)
                program.learn(algorithm, program.ITERATIONS)
                here[case] = program.digest(algorithm)
                continue
            try:
                program.learn(algorithm, program.ITERATIONS, SaveAt(moment, path))
            except KeyboardInterrupt:
                algorithm.save(path)
    environment = {**os.environ, "PYTHONPATH": str(Path(diffusion_gym.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return here, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_agree_to_the_bit(digests: tuple[dict[str, str], dict[str, str]], case: str) -> None:
    """The run here was cut in two calls of learn, the one there was not; both started from other global generators."""
    here, there = digests
    assert there[case] == here[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("moment", MOMENTS[:2])
def test_resuming_equals_never_stopping(digests: tuple[dict[str, str], dict[str, str]], case: str, moment: str) -> None:
    """Weights, moments, counters, costs and statistics, bit for bit."""
    here, there = digests
    assert there[f"{case},{moment}"] == here[case]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS[2:])
def test_resuming_from_any_moment(digests: tuple[dict[str, str], dict[str, str]], moment: str) -> None:
    here, there = digests
    assert there[f"ddpo-is,{moment}"] == here["ddpo-is"]


def test_going_on_after_an_interrupt_equals_never_stopping(tiny_sd: str, tmp_path: Path) -> None:
    """Ctrl-C in a notebook, then learn() again: the broken iteration never happened, also in the step count."""
    program = load_program()
    whole, broken = program.build("ddpo-is", tiny_sd), program.build("ddpo-is", tiny_sd)
    program.learn(whole, program.ITERATIONS)
    with pytest.raises(KeyboardInterrupt):
        program.learn(broken, program.ITERATIONS, SaveAt("interrupted", tmp_path / "unused.zip"))
    program.learn(broken, program.ITERATIONS)
    assert program.digest(broken) == program.digest(whole)


@pytest.mark.parametrize("case", ["ddpo-is", "ddpo-is lora"])
def test_the_global_generator_changes_nothing(tiny_sd: str, case: str) -> None:
    """Neither what it held when the policy was built (adapters start random), nor while it trained."""
    program = load_program()

    def run(global_seed: int) -> str:
        torch.manual_seed(global_seed)
        algorithm = program.build(case, tiny_sd)
        program.learn(algorithm, 1)
        torch.rand(3)
        program.learn(algorithm, 2)
        return program.digest(algorithm)

    assert run(0) == run(1)


def test_training_leaves_the_global_generator_alone(tiny_sd: str) -> None:
    """A user's own random numbers must not depend on whether a policy was built in between."""
    program = load_program()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    program.learn(program.build("ddpo-is lora", tiny_sd), 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", ["ddpo-is", "rwr lora", "ddpo-is lora"])
def test_seeds_differ(tiny_sd: str, case: str) -> None:
    program = load_program()
    runs = []
    for seed in range(3):
        algorithm = program.build(case, tiny_sd, seed)
        program.learn(algorithm, 1)
        runs.append(program.digest(algorithm).split()[0])
    assert len(set(runs)) == 3


def test_evaluation_noise_is_the_same_for_every_seed(make_env: Callable) -> None:
    """Fixed-noise evaluation compares runs: before training, all seeds show the same images."""

    def images(seed: int) -> torch.Tensor:
        config = DDPOConfig(evaluation=EvaluationConfig(images=4))
        algorithm = DDPO(make_env(), config, trainable="full", seed=seed)
        return evaluate(algorithm.mdp, algorithm.policy, algorithm.config, 0).images

    assert torch.equal(images(0), images(1))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_ratio_is_one_on_several_threads(threads: int) -> None:
    """Of the embedded model with the default chunk, also where threads share its rows between them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        algorithm = DDPO("DiffusionDenoise-v0", images_per_iteration=32, num_envs=32, updates_per_iteration=1)
        told: list[dict[str, float]] = []
        algorithm._log = lambda metrics: told.append(dict(metrics))
        algorithm.learn(1)
    finally:
        torch.set_num_threads(before)
    assert told[-1]["train/log_ratio_abs_max"] == 0.0
