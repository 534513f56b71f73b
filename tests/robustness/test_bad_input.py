# ruff: noqa: E501 - tables of one mistake a line
"""Bad input: what each mistake gets, with what was expected, what came, and what to do; none after a GPU was used.

A table for each way in. What other files test is not repeated here: the command line's likeliest mistakes word for word
(tests/benchmarks/test_mistakes.py), arguments of make and of reset, actions (tests/gym/test_make_errors.py,
test_env_errors.py), fields of configurations (tests/algorithms/test_configuration.py), own rewards
(tests/gym/test_rewards.py, test_combined_rewards.py).
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback

import diffusion_gym
from algorithms import (
    ALGORITHMS,
    DDPO,
    RWR,
    SB3PPO,
    DDPOConfig,
    EvaluationConfig,
    PolicyConfig,
    RWRConfig,
    SB3PPOConfig,
)
from algorithms.callbacks import KeepBest, StopAtKL, StopWhenMetricFalls
from algorithms.checkpoints.file import read_checkpoint, write_checkpoint
from algorithms.config.base import from_dict
from algorithms.policy import DenoisingPolicy
from algorithms.reference import Reference
from algorithms.sb3.actor_critic import DenoisingActorCritic, actor_critic_arguments
from benchmarks.__main__ import main
from benchmarks.runs.ownership import locked
from diffusion_gym import LoRAConfig
from diffusion_gym.rewards import RewardError

NAN, INF = float("nan"), float("inf")
EXACT: dict[str, Any] = {"model": "exact-gaussian", "reward": "exact-linear", "num_inference_steps": 3}
SMALL: dict[str, Any] = {"trainable": "full", "images_per_iteration": 4, "num_envs": 4}


def env(**changes: Any) -> Any:
    return gymnasium.make(diffusion_gym.ENV_ID, **{**EXACT, **changes})


def ddpo(**changes: Any) -> DDPO:
    return DDPO(env(), **{**SMALL, **changes})


def sb3_ppo(**changes: Any) -> SB3PPO:
    return SB3PPO(env(), **{**SMALL, **changes})


def unadapted() -> DenoisingPolicy:
    """A policy that says of itself to have adapters, of which its denoiser has none."""
    policy = ddpo().policy
    policy.config = PolicyConfig(trainable="lora")
    return policy


def observation(**changes: Any) -> dict[str, Any]:
    return {**ddpo().get_env().reset(), **changes}


def parameters(**groups: Any) -> dict[str, Any]:
    return {"policy": ddpo().get_parameters()["policy"], **groups}


def episode(reward: Callable[..., Any]) -> None:
    made = env(reward=reward)
    made.reset(seed=0)
    for _ in range(3):
        made.step(np.zeros((2, 1, 1), dtype=np.float32))


def returning(value: Any) -> Callable[..., Any]:
    """A reward that returns one value, whatever it is asked."""

    def bad(images: torch.Tensor, prompts: list[str]) -> Any:
        return value

    return bad


class Unmade:
    """A reward's class, given in place of an instance."""

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with everything that can be wrong with a file."""
    root = tmp_path_factory.mktemp("bad-input")
    texts = {
        "empty.txt": "", "blank.txt": "\n   \n\t\n", "four.txt": "a\nb\nc\nd\n", "bad.jsonl": '{"prompt": "cat", "weight": -1}\n',
        "nan.jsonl": '{"prompt": "cat", "weight": NaN}\n', "torn.jsonl": '{"prompt": "cat"\n', "key.jsonl": '{"text": "cat"}\n',
        "syntax.py": "def f(:\n", "three.py": "x = 3\n", "imports.py": "import nothing_like_it\n",
        "unmade.py": "class F:\n    def __call__(self, images, prompts):\n        return images\n",
        "one.py": "def f(images):\n    return images\n",
    }  # fmt: skip
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    (root / "latin.txt").write_bytes("un café\n".encode("latin-1"))
    (root / "folder.txt").mkdir()
    train = ["train", "ddpo-is", *TRAIN, "--reward-queries", "8", "--evaluation.images", "2"]
    torch.set_num_threads(1)
    assert main([*train, "--folder", str(root / "run")]) == 0
    damage: dict[str, Callable[[Path], object]] = {
        "list": lambda run: (run / "run.json").write_text("[1]"),
        "empty": lambda run: (run / "run.json").write_text(""),
        "no-spec": lambda run: _edit(run, lambda data: data.pop("spec")),
        "no-algorithm": lambda run: _edit(run, lambda data: data["spec"].pop("algorithm")),
        "other-algorithm": lambda run: _edit(run, lambda data: data["spec"].update(algorithm="ppo")),
        "bad-value": lambda run: _edit(run, lambda data: data["spec"]["config"].update(learning_rate="fast")),
        "bad-field": lambda run: _edit(run, lambda data: data["spec"]["config"].update(gamma=1)),
        "bad-policy": lambda run: _edit(run, lambda data: data["spec"]["config"].update(policy=3)),
        "checkpoint-folder": lambda run: ((run / "checkpoint.zip").unlink(), (run / "checkpoint.zip").mkdir()),
        "checkpoint-of-rwr": lambda run: RWR(env(), images_per_prompt=4, **SMALL).save(run / "checkpoint"),
        "checkpoint-of-mixture": lambda run: DDPO(env(model="exact-mixture"), **SMALL).save(run / "checkpoint"),
        "checkpoint-without-state": lambda run: write_checkpoint(run / "checkpoint.zip", {"algorithm": "DDPO"}, {}),
        "log-of-numbers": lambda run: (run / "metrics.jsonl").write_text("3\n"),
        "evaluations-of-others": lambda run: (run / "evaluations.jsonl").write_text('{"epoch": 1}\n'),
        "evaluations-torn-inside": lambda run: (run / "evaluations.jsonl").write_text('{"iter\n{"iteration": 1}\n'),
    }
    for name, change in damage.items():
        shutil.copytree(root / "run", root / name)
        change(root / name)
    return root


def _edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((run / "run.json").read_text(encoding="utf-8"))
    change(data)
    (run / "run.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(autouse=True)
def nothing_is_computed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the directory; no mistake but a reward's is found after the first forward pass."""
    monkeypatch.chdir(here)

    def forward(*arguments: Any) -> None:
        raise AssertionError("the denoiser was used before the mistake was found")

    monkeypatch.setattr(DenoisingPolicy, "distribution", forward)


# -- Python ------------------------------------------------------------------------------------------------------------

#: What is done -> the error's kind, and its words.
PYTHON: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # fields
    "text as a learning rate": (lambda: ddpo(learning_rate="fast"), ValueError, "learning_rate must be a finite number, got 'fast'"),
    "a schedule in a configuration": (lambda: DDPOConfig(learning_rate=lambda left: 0.1), ValueError, "learning_rate must be a number here.*give a schedule to the algorithm"),
    "a schedule below 0": (lambda: ddpo(learning_rate=lambda left: left - 1), ValueError, "schedule gave -1.0 at remaining progress 0; it must give a finite number of at least 0"),
    "NaN beta1": (lambda: ddpo(adam_beta1=NAN), ValueError, "adam_beta1 must be a finite number, got nan"),
    "beta2 of 1": (lambda: ddpo(adam_beta2=1.0), ValueError, r"adam_beta2 must lie in \[0, 1\), got 1\.0"),
    "negative weight decay": (lambda: ddpo(weight_decay=-1e-4), ValueError, "weight_decay must be at least 0, got -0.0001"),
    "infinite gradient norm": (lambda: ddpo(max_grad_norm=INF), ValueError, "max_grad_norm must be a finite number, got inf"),
    "negative skips": (lambda: ddpo(max_skipped_updates=-1), ValueError, "max_skipped_updates must be at least 0, got -1"),
    "fractional skips": (lambda: ddpo(max_skipped_updates=0.5), ValueError, "max_skipped_updates must be an integer, got 0.5"),
    "fractional images": (lambda: ddpo(images_per_iteration=4.0), ValueError, "images_per_iteration must be an integer, got 4.0"),
    "fractional updates": (lambda: ddpo(updates_per_iteration=2.0), ValueError, "updates_per_iteration must be an integer, got 2.0"),
    "fractional seed": (lambda: ddpo(seed=1.5), ValueError, "seed must be an integer, got 1.5"),
    "text as a truth value": (lambda: DDPOConfig(importance_sampling="no"), ValueError, "importance_sampling must be True or False, got 'no'"),
    "number as a truth value": (lambda: DDPOConfig(rewards_beside_sampling=1), ValueError, "rewards_beside_sampling must be True or False, got 1"),
    "clip range beyond float32": (lambda: DDPOConfig(clip_range=100.0), ValueError, r"clip_range must lie in \(0, 88\].*got 100\.0"),
    "NaN clip range": (lambda: DDPOConfig(clip_range=NAN), ValueError, "clip_range must be a finite number, got nan"),
    "infinite advantage clip": (lambda: DDPOConfig(advantage_clip=INF), ValueError, "advantage_clip must be a finite number, got inf"),
    "NaN share of steps": (lambda: DDPOConfig(timestep_fraction=NAN), ValueError, "timestep_fraction must be a finite number, got nan"),
    "fractional buffer": (lambda: DDPOConfig(statistics_buffer=3.5), ValueError, "statistics_buffer must be an integer, got 3.5"),
    "NaN temperature": (lambda: RWRConfig(beta=NAN), ValueError, "beta must be a finite number, got nan"),
    "NaN top fraction": (lambda: RWRConfig(top_fraction=NAN), ValueError, "top_fraction must be a finite number, got nan"),
    "NaN guidance": (lambda: PolicyConfig(guidance_scale=NAN), ValueError, "guidance_scale must be a finite number, got nan"),
    "NaN eta": (lambda: PolicyConfig(eta=NAN), ValueError, "eta must be a finite number or a tuple of finite numbers, got nan"),
    "fractional chunk": (lambda: PolicyConfig(chunk_size=2.5), ValueError, "chunk_size must be an integer, got 2.5"),
    "fractional rank": (lambda: PolicyConfig(lora=LoRAConfig(rank=1.5)), ValueError, "rank must be an integer, got 1.5"),
    "NaN alpha": (lambda: LoRAConfig(alpha=NAN), ValueError, "expected lora.rank >= 1, lora.alpha > 0 and at least one of lora.targets, got 4, nan and"),
    "targets in one text": (lambda: LoRAConfig(targets=("to_q,to_k",)), ValueError, "the LoRA target 'to_q,to_k' is not a layer's name: .*each by itself .to_q to_k."),
    "a target as a pattern": (lambda: LoRAConfig(targets=("attn2.to_.*",)), ValueError, "the LoRA target 'attn2.to_.*' is not a layer's name"),
    "one target spelled out": (lambda: PolicyConfig(lora=LoRAConfig(targets="attention")), ValueError, "targets must be a tuple of texts, got 'attention'"),
    "a mapping as the policy": (lambda: ddpo(policy={"eta": 1.0}), ValueError, r"policy must be a PolicyConfig, got \{'eta': 1\.0\}"),
    "a number as the evaluation": (lambda: ddpo(evaluation=5), ValueError, "evaluation must be a EvaluationConfig, got 5"),
    "negative evaluation seed": (lambda: EvaluationConfig(seed=-1), ValueError, "evaluation.seed must be at least 0, got -1"),
    "fractional evaluation": (lambda: EvaluationConfig(images=2.5), ValueError, "images must be an integer, got 2.5"),
    "a mapping as the configuration": (lambda: DDPO(env(), {"learning_rate": 1.0}), TypeError, "DDPO needs a DDPOConfig, got dict"),
    "text in a description": (lambda: from_dict(RWRConfig, {"beta": "0.1"}), ValueError, "beta must be a finite number, got '0.1'"),
    # learn
    "negative steps": (lambda: ddpo().learn(-1), ValueError, "total_timesteps must be an integer of at least 0, got -1"),
    "fractional steps": (lambda: ddpo().learn(1e5), ValueError, "total_timesteps must be an integer.*got 100000.0; for 1e5 write 100_000"),
    "text as steps": (lambda: ddpo().learn("100"), ValueError, "total_timesteps must be an integer.*got '100'"),
    "truth value as steps": (lambda: ddpo().learn(True), ValueError, "total_timesteps must be an integer.*got True"),
    "interval of 0": (lambda: ddpo().learn(12, log_interval=0), ValueError, "log_interval must be an integer of at least 1, got 0"),
    "number as a callback": (lambda: ddpo().learn(12, 3), TypeError, "callback must be a Stable-Baselines3 callback.*got int"),
    "number in a list of callbacks": (lambda: ddpo().learn(12, [3]), TypeError, "callback must be .*got int in a list"),
    "callback that is a class": (lambda: ddpo().learn(12, CheckpointCallback), TypeError, r"CheckpointCallback is a class; give an instance of it"),
    # environments
    "another environment": (lambda: ddpo().set_env(gymnasium.make("CartPole-v1")), TypeError, "expected a DiffusionDenoise environment.*got CartPoleEnv"),
    "no environment": (lambda: ddpo().set_env(None), TypeError, "expected a DiffusionDenoise environment.*got NoneType"),
    "other number of steps": (lambda: ddpo().set_env(env(num_inference_steps=4)), ValueError, "built for 3 steps .*has 4 steps"),
    "unknown reward in place": (lambda: env().unwrapped.set_reward("nope"), ValueError, "unknown reward 'nope'; expected one of"),
    "a list to score": (lambda: env().unwrapped.score([1.0], ["centre"]), TypeError, "latents to score must be a tensor, got list"),
    "wrong latents to score": (lambda: env().unwrapped.score(torch.zeros(1, 5, 1, 1), ["centre"]), ValueError, r"of shape \(1, 2, 1, 1\) for 1 prompts, got shape \(1, 5, 1, 1\)"),
    "NaN to score": (lambda: env().unwrapped.score(torch.full((1, 2, 1, 1), NAN), ["centre"]), ValueError, "expected finite latents.*finite: False"),
    "fewer prompts than latents": (lambda: env().unwrapped.score(torch.zeros(2, 2, 1, 1), ["centre"]), ValueError, "for 1 prompts, got shape"),
    "an unknown environment": (lambda: DDPO("nope"), ValueError, "expected an environment or its id, as 'DiffusionDenoise-v0', got 'nope', of which Gymnasium makes none: .*nope"),
    "an environment of another kind, by id": (lambda: DDPO("CartPole-v1"), TypeError, "expected a DiffusionDenoise environment.*got CartPoleEnv"),
    # safeguards
    "a KL without noise": (lambda: RWR(env(), kl_to_start=True, eta=0.0, trainable="full"), ValueError, "The KL to the starting model needs a stochastic sampler.*eta=0.0 no step has a density"),
    "adapters that cannot be switched off": (lambda: Reference(unadapted()), ValueError, "the LoRA of 'exact-gaussian' has no layer of peft's; train all weights"),
    "a negative KL penalty": (lambda: DDPOConfig(kl_penalty=-0.1), ValueError, "kl_penalty must be at least 0, got -0.1"),
    "a decay of 1": (lambda: ddpo(ema_decay=1.0), ValueError, r"ema_decay must lie in \[0, 1\), got 1\.0"),
    "averages of another model": (lambda: ddpo(ema_decay=0.9).set_parameters(parameters(average={"x": torch.zeros(1)})), ValueError, "do not fit this policy: the checkpoint lacks 'log_stds'"),
    "NaN averages": (lambda: ddpo(ema_decay=0.9).set_parameters(parameters(average={k: NAN * v for k, v in parameters()["policy"].items()})), ValueError, "holds NaN or infinity"),
    "a limit of 0 nats": (lambda: StopAtKL(0.0), ValueError, "the limit of the KL must be a positive, finite number of nats per image, got 0.0"),
    "a NaN limit": (lambda: StopAtKL(NAN), ValueError, "the limit of the KL must be a positive, finite number.*got nan"),
    "a limit of a KL that is not measured": (lambda: ddpo(images=4).learn(12, StopAtKL(20.0)), ValueError, "StopAtKL needs the KL to the starting model, which is not measured; set kl_to_start"),
    "a callback without evaluations": (lambda: ddpo().learn(12, KeepBest("best")), ValueError, "KeepBest decides at evaluations, of which there are none; set evaluation.images"),
    "no patience": (lambda: StopWhenMetricFalls(patience=0), ValueError, "patience must be an integer of at least 1, got 0"),
    "fractional patience": (lambda: StopWhenMetricFalls(patience=2.5), ValueError, "patience must be an integer of at least 1, got 2.5"),
    # Stable-Baselines3's PPO
    "PPO without steps that have a density": (lambda: sb3_ppo(eta=0.0), ValueError, "SB3PPO needs a stochastic sampler.*set eta > 0"),
    "PPO with minibatches of 1": (lambda: SB3PPOConfig(batch_size=1), ValueError, "n_epochs must be at least 1 and batch_size at least 2, got 10 and 1"),
    "PPO without a pass": (lambda: SB3PPOConfig(n_epochs=0), ValueError, "n_epochs must be at least 1"),
    "PPO with an empty clip range": (lambda: SB3PPOConfig(clip_range=0.0), ValueError, "clip_range must be positive and vf_coef at least 0, got 0.0 and 0.5"),
    "PPO with a lambda over 1": (lambda: SB3PPOConfig(gae_lambda=1.5), ValueError, r"gae_lambda must lie in \[0, 1\], got 1\.5"),
    "PPO in float16": (lambda: sb3_ppo(autocast="float16"), ValueError, "PPO does not scale its loss.*use bfloat16"),
    "a policy of PPO without a model": (lambda: PPO(DenoisingActorCritic, env(), device="cpu"), ValueError, r"policy_kwargs=actor_critic_arguments\(env\)"),
    "PPO with noise of its own": (lambda: PPO(DenoisingActorCritic, env(), device="cpu", use_sde=True, policy_kwargs=actor_critic_arguments(env(), trainable="full")), ValueError, "use_sde=True is not possible"),
    "a policy of PPO on no environment": (lambda: actor_critic_arguments(None), TypeError, "expected a DiffusionDenoise environment.*got NoneType"),
    # predict
    "an array as the observation": (lambda: ddpo().predict(np.zeros(3)), TypeError, r"must map \['latent', 'prompt_embedding', 'timestep'\] to arrays, got ndarray"),
    "no observation": (lambda: ddpo().predict(None), TypeError, "must map .* to arrays, got NoneType"),
    "latents of another model": (lambda: ddpo().predict(observation(latent=np.zeros((4, 3, 1, 1), np.float32))), ValueError, r"latent must have shape \(2, 1, 1\).*got \(4, 3, 1, 1\)"),
    "embeddings of another model": (lambda: ddpo().predict(observation(prompt_embedding=np.zeros((4, 7, 9)))), ValueError, r"prompt_embedding must have shape \(1, 1\).*got \(4, 7, 9\)"),
    "fewer times than latents": (lambda: ddpo().predict(observation(timestep=np.zeros((3, 1)))), ValueError, r"timestep must have shape \(1,\).*got \(3, 1\)"),
    "texts as latents": (lambda: ddpo().predict(observation(latent=np.array(["a"] * 4, dtype=object))), TypeError, "latent must be an array of numbers"),
    "NaN latents": (lambda: ddpo().predict(observation(latent=np.full((4, 2, 1, 1), NAN, np.float32))), ValueError, "latent holds NaN or infinity"),
    # parameters and checkpoints
    "parameters without a policy": (lambda: ddpo().set_parameters({"average": {}}), ValueError, "lacks 'log_stds'.*3 missing"),
    "parameters of an unknown group": (lambda: ddpo().set_parameters({"weights": {}}), ValueError, "unknown group 'weights'; expected policy"),
    "parameters as a list": (lambda: ddpo().set_parameters([1]), TypeError, r"expected a checkpoint's path, or a readable binary file.*got list"),
    "NaN weights": (lambda: ddpo().set_parameters({"policy": {k: NAN * v for k, v in parameters()["policy"].items()}}), ValueError, "holds NaN or infinity; weights and moments must be finite"),
    "moments of another model": (lambda: ddpo().set_parameters(parameters(optimizer={"conv/exp_avg": torch.zeros(1)})), ValueError, "optimizer's 'conv/exp_avg' .*fits no weight"),
    "moments of another shape": (lambda: ddpo().set_parameters(parameters(optimizer={"means/exp_avg": torch.zeros(7)})), ValueError, r"'means/exp_avg' of shape \(7,\) fits no weight"),
    "an unknown weight, loosely": (lambda: ddpo().set_parameters({"policy": {"x": torch.zeros(1)}}, exact_match=False), ValueError, "has the unknown 'x'"),
    "a checkpoint that is a folder": (lambda: DDPO.load("checkpoint-folder/checkpoint.zip"), ValueError, "expected a checkpoint file .*found a folder"),
    "a checkpoint without a state": (lambda: DDPO.load("checkpoint-without-state/checkpoint"), ValueError, "is not a checkpoint of an algorithm: its state lacks 'config'"),
    "a checkpoint of another algorithm": (lambda: DDPO.load("checkpoint-of-rwr/checkpoint"), ValueError, "is a checkpoint of RWR, not of DDPO"),
    "a checkpoint of another model": (lambda: DDPO.load("checkpoint-of-mixture/checkpoint", env()), ValueError, "trained on the model 'exact-mixture', the environment has 'exact-gaussian'"),
    "a prompt file as a checkpoint": (lambda: read_checkpoint("four.txt"), ValueError, "'four.txt' is truncated or altered"),
    "an unknown field while loading": (lambda: DDPO.load("run/checkpoint", learning_rat=1.0), TypeError, "no field 'learning_rat'"),
    "an unknown device while loading": (lambda: DDPO.load("run/checkpoint", device="tpu"), ValueError, "unknown device 'tpu'"),
}  # fmt: skip

#: What ``make`` is given, of files and rewards -> the error's words; always a ValueError or a TypeError.
MAKE: dict[str, tuple[dict[str, Any], str]] = {
    "blank lines alone": ({"prompts": "blank.txt"}, "'blank.txt' holds no prompt; expected one prompt per line"),
    "latin-1 prompts": ({"prompts": "latin.txt"}, "cannot read prompts from 'latin.txt'.*Expected UTF-8"),
    "a folder of prompts": ({"prompts": "folder.txt"}, "cannot read prompts from 'folder.txt': Is a directory"),
    "a negative weight": ({"prompts": "bad.jsonl"}, "'bad.jsonl', line 1: the weight of 'cat' must be a positive number, got -1"),
    "a NaN weight": ({"prompts": "nan.jsonl"}, "the weight of 'cat' must be a positive number, got nan"),
    "half a line of JSON": ({"prompts": "torn.jsonl"}, r'.torn\.jsonl., line 1: .*Expected one \{"prompt": "a cat", "weight": 2\}'),
    "JSON with other keys": ({"prompts": "key.jsonl"}, "must hold 'prompt', a text"),
    "too few prompts to split": ({"prompts": "four.txt@held-out"}, "'four.txt' holds 4 prompts, too few to split"),
    "an unknown side of a split": ({"prompts": "animals@test"}, "unknown prompt set 'animals@test'; expected one of"),
    "bytes as prompts": ({"prompts": b"cat"}, r"prompts\[0\] must be text, got int"),
    "a mapping as prompts": ({"prompts": {"cat": 1}}, "prompts must be a set's name, a file or a sequence of texts, got dict"),
    "a generator as prompts": ({"prompts": (text for text in ["centre"])}, "a sequence of texts, got generator"),
    "a reward's class": ({"reward": Unmade}, r"the reward 'Unmade' is a class; give an instance of it: reward=Unmade\(...\)"),
    "no reward": ({"reward": None}, "reward must be a name.*got NoneType"),
    "an empty reward": ({"reward": ""}, "unknown reward ''; expected one of"),
    "an empty mapping of rewards": ({"reward": {}}, "a combined reward needs at least one term, for example"),
    "a weight that is no number": ({"reward": {"exact-linear": "much"}}, "the weight of reward 'exact-linear' must be a finite number, got 'much'"),
    "an infinite weight": ({"reward": "exact-linear:inf"}, "the weight of reward 'exact-linear' must be a finite number, got 'inf'"),
    "a comma too many": ({"reward": "exact-linear:1,"}, "unknown reward ''"),
    "an unknown option": ({"reward": "exact-linear?side=3"}, "unknown option 'side' of reward 'exact-linear'; it has no options"),
    "a missing reward file": ({"reward": "missing.py:f"}, "there is no reward file 'missing.py' .*expected 'path/to/file.py:function'"),
    "a reward file that is no Python": ({"reward": "syntax.py:f"}, "the reward file 'syntax.py' does not run: .* in line 1"),
    "a reward file that imports too much": ({"reward": "imports.py:f"}, r"'imports.py' does not run: .*nothing_like_it.*\(line 1\)"),
    "a reward file without the function": ({"reward": "three.py:f"}, r"'three.py' has no 'f'; its functions are \[\]"),
    "a reward file's number": ({"reward": "three.py:x"}, "'three.py:x': reward must be .*got int"),
    "a reward file's class": ({"reward": "unmade.py:F"}, "'unmade.py:F': the reward 'F' is a class; give an instance"),
    "a reward of one argument": ({"reward": "one.py:f"}, r"the reward 'f' takes \(images\); expected \(images, prompts\)"),
    "no device": ({"device": None}, "unknown device None; expected for example 'auto', 'cpu'"),
    "no dtype": ({"dtype": None}, "unknown dtype None; expected one of"),
    "text as steps": ({"num_inference_steps": "10"}, "num_inference_steps must be an integer from 1 to 1000, got '10'"),
}  # fmt: skip

#: What a reward returns -> the error's words; always a RewardError, which names the reward.
REWARDS: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"reward 'bad' must return a tensor of shape \(1,\), got None"),
    "texts": (["good"], r"must return a tensor of shape \(1,\), got \['good'\]"),
    "a mapping": ({"score": 1.0}, r"must return a tensor of shape \(1,\), got \{'score': 1\.0\}"),
    "one number": (1.0, r"must return real scores of shape \(1,\), got shape \(\)"),
    "a column": (torch.zeros(1, 1), r"must return real scores of shape \(1,\), got shape \(1, 1\)"),
    "too many": (torch.zeros(5), r"must return real scores of shape \(1,\), got shape \(5,\).*prompts 'anywhere'"),
    "complex numbers": (torch.zeros(1, dtype=torch.complex64), "must return real scores .*dtype torch.complex64"),
    "NaN in a list": ([NAN], "returned nan for the prompt 'anywhere'; expected a finite score"),
    "more than float32 holds": ([1e300], "returned inf for the prompt 'anywhere'; expected a finite score"),
}  # fmt: skip

TRAIN = ["--model", "exact-gaussian", "--reward", "exact-linear", "--policy.trainable", "full", "--threads", "1"]
TRAIN += ["--images-per-iteration", "4", "--num-envs", "4"]
DDPO_IS = ["train", "ddpo-is"]
RESUME = [*DDPO_IS, *TRAIN, "--reward-queries", "8", "--evaluation.images", "2", "--folder"]

#: Words after ``diffusion-gym`` -> the error's words, spaces and boxes aside.
COMMANDS: dict[str, tuple[list[str], str]] = {
    # train --config
    "no run to repeat": (["train", "--config", "nowhere"], "'nowhere' is no run; expected a folder written by train or compare"),
    "a prompt file to repeat": (["train", "--config", "four.txt"], "'four.txt' is no run; expected a folder"),
    "nothing to repeat": (["train", "--config"], "expected one run's folder, or its run.json, behind --config"),
    "a run onto itself": (["train", "--config", "run", "--folder", "run"], "'run' is the run that is to be repeated. Choose another --folder"),
    "a change of what is repeated": (["train", "--config", "run", "--beta", "1"], "has no option --beta"),
    "a run and another algorithm": (["train", "rwr", "--config", "run"], "'run' is a run of ddpo-is, not of rwr"),
    "a list as a run": (["train", "--config", "list"], "'list/run.json' holds a list; expected a mapping"),
    "an empty run.json": (["train", "--config", "empty/run.json"], "'empty/run.json' is damaged (Expecting value"),
    "a run without a specification": (["train", "--config", "no-spec"], "is not a run as written by train or compare: it lacks 'spec'"),
    "a run without an algorithm": (["train", "--config", "no-algorithm"], "it lacks 'algorithm'"),
    "a run of an unknown algorithm": (["train", "--config", "other-algorithm"], f"unknown algorithm 'ppo'; expected one of {sorted(ALGORITHMS)}"),
    "a run with a bad value": (["train", "--config", "bad-value"], "learning_rate must be a finite number, got 'fast'"),
    "a run of another version": (["train", "--config", "bad-field"], "DDPOConfig has no field 'gamma'; its fields are"),
    "a run with a bad policy": (["train", "--config", "bad-policy"], "policy must be a PolicyConfig, got 3"),
    # a folder that cannot be resumed
    "a checkpoint that is a folder": ([*RESUME, "checkpoint-folder"], "expected a checkpoint file at 'checkpoint-folder/checkpoint.zip', found a folder"),
    "a checkpoint of another algorithm": ([*RESUME, "checkpoint-of-rwr"], "is a checkpoint of RWR, not of DDPO"),
    "a checkpoint of another model": ([*RESUME, "checkpoint-of-mixture"], "trained on the model 'exact-mixture', the environment has 'exact-gaussian'"),
    "a log of numbers": ([*RESUME, "log-of-numbers"], "line 1 of 'log-of-numbers/metrics.jsonl' is damaged: expected a mapping with 'time/iterations'"),
    "evaluations of something else": ([*RESUME, "evaluations-of-others"], "line 1 of 'evaluations-of-others/evaluations.jsonl' is damaged: expected a mapping with 'iteration'"),
    "a line torn in the middle": ([*RESUME, "evaluations-torn-inside"], "line 1 of 'evaluations-torn-inside/evaluations.jsonl' is damaged"),
    # output
    "no checkpoint kept": ([*DDPO_IS, "--keep-checkpoints", "0"], "--keep-checkpoints >= 1 and --threads >= 0, got 10, 0 and 0"),
    "no checkpoint written": ([*DDPO_IS, "--checkpoint-every", "0"], "expected --checkpoint-every >= 1"),
    "negative threads": ([*DDPO_IS, "--threads", "-1"], "--threads >= 0, got 10, 1 and -1"),
    "an unknown mode of wandb": ([*DDPO_IS, "--wandb", "maybe"], "--wandb must be one of off, offline, online, got 'maybe'"),
    # values
    "NaN learning rate": ([*DDPO_IS, "--learning-rate", "nan"], "--learning-rate must be a finite number, got nan"),
    "infinite learning rate": ([*DDPO_IS, "--learning-rate", "inf"], "--learning-rate must be a finite number, got inf"),
    "NaN eta": ([*DDPO_IS, "--policy.eta", "nan"], "--policy.eta must be a finite number or a tuple of finite numbers, got nan"),
    "beta1 of 1": ([*DDPO_IS, "--adam-beta1", "1"], "--adam-beta1 must lie in [0, 1), got 1.0"),
    "negative weight decay": ([*DDPO_IS, "--weight-decay", "-1"], "--weight-decay must be at least 0, got -1.0"),
    "negative skips": ([*DDPO_IS, "--max-skipped-updates", "-1"], "--max-skipped-updates must be at least 0, got -1"),
    "negative evaluation": ([*DDPO_IS, "--evaluation.images", "-1"], "--evaluation.images >= 0, --evaluation.every >= 1 and --evaluation.images-per-prompt >= 1, got -1,"),
    "held-out prompts without evaluation": ([*DDPO_IS, "--evaluation.images", "0", "--evaluation.held-out-prompts", "animals@held-out"], "--evaluation.held-out-prompts needs an evaluation; set --evaluation.images"),
    "held-out prompts that are trained on": ([*DDPO_IS, "--prompts", "ten-animals", "--evaluation.images", "4", "--evaluation.held-out-prompts", "animals@held-out"], "of the held-out prompts 'animals@held-out' are trained on"),
    "rank 0": ([*DDPO_IS, "--policy.lora.rank", "0"], "expected --policy.lora.rank >= 1"),
    "no targets": ([*DDPO_IS, "--policy.lora.targets"], "at least one of --policy.lora.targets"),
    "half an environment": ([*DDPO_IS, "--num-envs", "2.5"], "--num-envs takes INT: invalid literal for int()"),
    "an unknown dtype": ([*DDPO_IS, "--dtype", "int8"], "--dtype must be one of float32, bfloat16, float16, got 'int8'"),
    "blank lines as prompts": ([*DDPO_IS, "--prompts", "blank.txt"], "the prompt file 'blank.txt' holds no prompt"),
    "a folder as prompts": ([*DDPO_IS, "--prompts", "folder.txt"], "cannot read prompts from 'folder.txt': Is a directory"),
    "a missing reward file": ([*DDPO_IS, "--reward", "missing.py:f"], "there is no reward file 'missing.py'"),
    "an option no reward has": ([*DDPO_IS, "--reward", "clip_score?x=1"], "unknown option 'x' of reward 'clip_score'; expected some of"),
    "an option no metric has": ([*DDPO_IS, "--metrics", "aesthetic?x=1"], "unknown metric 'aesthetic?x=1'; expected some of"),
    # safeguards
    "a stop at a KL that is not measured": ([*DDPO_IS, "--evaluation.images", "4", "--stop-at-kl", "20"], "--stop-at-kl needs the KL to the starting model, which is not measured; set --kl-to-start"),
    "a stop at a negative KL": ([*DDPO_IS, "--stop-at-kl", "-1"], "the limit of the KL must be a positive, finite number of nats per image, got -1.0"),
    "a stop without evaluations": ([*DDPO_IS, "--evaluation.images", "0", "--stop-when-metric-falls", "reward"], "decide at evaluations, of which there are none; set --evaluation.images"),
    "no patience": ([*DDPO_IS, "--patience", "0"], "--patience must be an integer of at least 1, got 0"),
    "the best of an unknown metric": ([*DDPO_IS, "--evaluation.images", "4", "--keep-best", "beauty"], "unknown metric 'beauty'; expected some of"),
    "the best of a KL": ([*DDPO_IS, "--evaluation.images", "4", "--kl-to-start", "--keep-best", "kl_to_start"], "unknown metric 'kl_to_start'; expected some of"),
    "the best of a distance": ([*DDPO_IS, "--evaluation.images", "4", "--keep-best", "exact-excess-kl"], "expected a metric of which more is better, got the distance 'exact-excess-kl'"),
    "a stop when a distance falls": ([*DDPO_IS, "--evaluation.images", "4", "--stop-when-metric-falls", "exact-target-kl?beta=1"], "expected a metric of which more is better, got the distance 'exact-target-kl?beta=1'"),
    "a distance with a bad option": ([*DDPO_IS, "--metrics", "exact-target-kl?beta=-1"], "takes one option, beta=NUMBER with a positive number; got 'beta=-1'"),
    "the best on held-out prompts that are not there": ([*DDPO_IS, "--evaluation.images", "4", "--keep-best", "held_out/reward"], "a metric with held_out/ before it needs held-out prompts; set --evaluation.held-out-prompts"),
    "a KL penalty of RWR": (["train", "rwr", "--kl-penalty", "0.1"], "has no option --kl-penalty"),
    "a NaN KL penalty": ([*DDPO_IS, "--kl-penalty", "nan"], "--kl-penalty must be a finite number, got nan"),
    "minibatches of 1 for PPO": (["train", "sb3-ppo", "--batch-size", "1"], "--n-epochs must be at least 1 and --batch-size at least 2, got 1 and 1"),
    # the other commands
    "PPO in a suite that does not know it": (["compare", "--suite", "paper", "--algorithms", "sb3-ppo"], "unknown algorithm 'sb3-ppo'; expected some of"),
    "a search for PPO": (["search", "--algorithms", "sb3-ppo"], "unknown algorithm 'sb3-ppo'; expected some of"),
    "a report of nothing": (["report"], "diffusion-gym report needs folder"),
    "a report of a missing folder": (["report", "nowhere"], "'nowhere' holds neither a run nor a comparison"),
    "a report of a file": (["report", "four.txt"], "'four.txt' holds neither a run nor a comparison"),
    "a report of a damaged run": (["report", "list"], "'list/run.json' holds a list; expected a mapping"),
    "a report of a damaged log": (["report", "log-of-numbers"], "line 1 of 'log-of-numbers/metrics.jsonl' is damaged"),
    "pictures into a file's folder": (["sample", "--output", "four.txt/x.png"], "cannot write 'four.txt': File exists. Expected a place where you may write"),
    "pictures in no format": (["sample", "--output", "x.xyz"], "a picture's file must end in .png, .jpg or another format of Pillow's, got 'x.xyz'"),
    "no pictures": (["sample", "--images", "0"], "--images >= 1"),
    "pictures of no prompts": (["sample", "--prompts"], "expected at least one prompt"),
    "pictures with a bad eta": (["sample", "--eta", "3"], "--eta must lie in [0, 1], got 3.0"),
    "pictures in no steps": (["sample", "--num-inference-steps", "0"], "--num-inference-steps >= 1 and --scale >= 1, got 3, 4, 0 and 2"),
    "a comparison in a file": (["compare", "--quick", "--folder", "four.txt"], "cannot write 'four.txt': File exists"),
    "a comparison of nothing": (["compare", "--algorithms"], "unknown algorithm '(none)'; expected some of"),
    "a comparison with negative processes": (["compare", "--processes", "-1"], "--processes >= 0"),
    "a search without queries": (["search", "--reward-queries", "0"], "expected --reward-queries >= 1"),
    "a throughput on no device": (["throughput", "--device", "gpu"], "unknown device 'gpu'; expected for example 'auto', 'cpu'"),
    "a seed in words": (["pretrain", "--seed", "x"], "--seed takes INT: invalid literal for int()"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PYTHON)
def test_python(mistake: str) -> None:
    do, kind, words = PYTHON[mistake]
    with pytest.raises(kind, match=words):
        do()


@pytest.mark.parametrize("mistake", MAKE)
def test_make(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts and rewards each is found before a model is loaded."""
    arguments, words = MAKE[mistake]
    if set(arguments) & {"prompts", "reward"}:
        monkeypatch.setattr("diffusion_gym.envs.config.load_model", _never)
    with pytest.raises((ValueError, TypeError), match=words):
        env(**arguments)


def _never(*arguments: Any) -> None:
    raise AssertionError("the model was loaded before the mistake was found")


@pytest.mark.parametrize("mistake", REWARDS)
def test_reward(mistake: str) -> None:
    returned, words = REWARDS[mistake]
    with pytest.raises(RewardError, match=words):
        episode(returning(returned))


def test_a_reward_that_raises_is_told_with_its_line() -> None:
    def divides(images: torch.Tensor, prompts: list[str]) -> Any:
        return 1 / 0

    with pytest.raises(RewardError, match=r"reward 'divides' failed on 1 images .*ZeroDivisionError.*line \d+\)"):
        episode(divides)


@pytest.mark.parametrize("mistake", COMMANDS)
def test_command(mistake: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 2, no traceback, nothing computed, no file changed."""
    words, expected = COMMANDS[mistake]
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")
    before = {file: file.stat().st_mtime_ns for file in here.rglob("*")}
    try:
        status: object = main(words)
    except SystemExit as stop:  # tyro ends the process itself
        status = stop.code
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status == 2, error
    assert expected in error
    assert "Traceback" not in error
    assert {file: file.stat().st_mtime_ns for file in here.rglob("*")} == before


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked on POSIX systems alone")
def test_a_folder_in_which_another_process_trains(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system's locks hold between two files that were opened apart, in one process too."""
    with locked(here / "run"):
        assert main([*RESUME, "run"]) == 2
    assert "another process is training in 'run'. Wait until it is done" in capsys.readouterr().err


def test_in_a_process_of_its_own(here: Path) -> None:
    """As a user calls it: the message alone on the error stream, status 2."""
    command = [sys.executable, "-m", "benchmarks", "train", "--config", "bad-value"]
    source = str(Path(diffusion_gym.__file__).parents[1])
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120, cwd=here)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: 'bad-value/run.json' is not a run")
    assert "learning_rate must be a finite number, got 'fast'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_table_is_as_long_as_promised() -> None:
    assert len(PYTHON) + len(MAKE) + len(REWARDS) + len(COMMANDS) >= 60
