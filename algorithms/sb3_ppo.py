"""Stable-Baselines3's own PPO as an algorithm of the registry, so that suites can compare it.

Images are sampled, evaluated, counted, logged and saved as every algorithm's are. Advantages, losses and minibatches
are Stable-Baselines3's: each iteration's transitions go into its rollout buffer, and its ``PPO.train`` does the rest.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import Logger
from torch import nn

from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config.algorithms import SB3PPOConfig as SB3PPOConfig
from algorithms.rollouts import Rollout
from algorithms.sb3.actor_critic import DenoisingActorCritic, actor_critic_arguments
from algorithms.sb3.vec_env import DenoiseVecEnv
from algorithms.seeding import Stream, derive_seed
from diffusion_gym.transitions import Gaussian

_CRITIC = 1  # key of the critic's initial weights, beside those of the adapters


class SB3PPO(DiffusionAlgorithm[SB3PPOConfig]):
    """``SB3PPO("DiffusionDenoise-v0", trainable="full").learn(100_000)``."""

    config_class = SB3PPOConfig

    @classmethod
    def requires(cls, config: SB3PPOConfig) -> Requirements:
        """Return whole trajectories of steps with a density."""
        return replace(super().requires(config), trajectory=True, density=True)

    @classmethod
    def check_config(cls, config: SB3PPOConfig) -> None:
        """Also refuse to train a text encoder."""
        super().check_config(config)
        if config.policy.trains_text:
            raise ValueError(
                "Stable-Baselines3's PPO cannot train a text encoder: its critic sees the prompt's embedding. Set "
                "policy.train to 'denoiser'."
            )

    def _setup_model(self) -> None:
        """Build the critic around the policy.

        Raises:
            ValueError: a precision that PPO cannot do.
        """
        super()._setup_model()
        if self.policy.computes_in_float16:
            raise ValueError(
                "Stable-Baselines3's PPO does not scale its loss, so gradients in float16 would vanish; use bfloat16."
            )
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.config.seed, Stream.INITIAL_WEIGHTS, _CRITIC))
            self.ppo = self._build_ppo()
        self.optimizer = self.make_optimizer()
        self.ppo.policy.optimizer = _Stepping(self)  # type: ignore[assignment]

    def _build_ppo(self) -> PPO:
        config, env = self.config, DenoiseVecEnv(self.mdp, self.config.images_per_iteration)
        arguments = actor_critic_arguments(env, config.policy)
        # Gradients are clipped by the shell, which sees then whether their norm was finite.
        with warnings.catch_warnings():  # of a last minibatch that is smaller
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size", category=UserWarning)
            ppo = PPO(
                DenoisingActorCritic, env, n_steps=self.mdp.num_inference_steps, gamma=1.0, device=self.device,
                learning_rate=self._rate_at, max_grad_norm=math.inf, n_epochs=config.n_epochs,
                batch_size=config.batch_size, clip_range=config.clip_range, gae_lambda=config.gae_lambda,
                vf_coef=config.vf_coef, policy_kwargs={**arguments, "build_actor": lambda: self.policy},
            )  # fmt: skip
        ppo.set_logger(Logger(None, []))
        return ppo

    def _rate_at(self, progress_remaining: float) -> float:
        """Return the algorithm's learning rate, which PPO writes into the optimizer."""
        return self._current_rate

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return name -> parameter of the policy, and of the critic."""
        critic = self.ppo.policy.value_net.named_parameters()
        return {**super().trained_parameters(), **{f"critic/{name}": value for name, value in critic}}

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Let Stable-Baselines3 estimate advantages and train, in an order of minibatches that the run's seed fixes."""
        self._fill(self.ppo.rollout_buffer, rollout)
        with _numpy_seeded(derive_seed(self.config.seed, Stream.UPDATES, self.iteration)):
            self.ppo.train()
        self.count_rows(self.config.n_epochs * self.mdp.num_inference_steps * len(rollout))
        logged = {name: float(value) for name, value in self.ppo.logger.name_to_value.items()}
        self.ppo.logger.name_to_value.clear()
        # The explained variance is NaN where returns do not vary.
        return {name: value for name, value in logged.items() if math.isfinite(value)}

    @torch.no_grad()
    def _fill(self, buffer: Any, rollout: Rollout) -> None:
        """Put an iteration's images, one episode each, into PPO's buffer; the reward comes with the last step."""
        assert isinstance(buffer, DictRolloutBuffer)
        buffer.reset()
        steps, n = len(rollout.log_probs), len(rollout)
        dense, times = self.policy.transition.has_density.tolist(), self.policy.transition.timesteps
        stds = self.policy.transition.std
        prompts = self.mdp.conditioning_of(rollout.records)
        for t in range(steps):
            observation = {**prompts, "latent": rollout.latents[t], "timestep": times[t].float().expand(n, 1)}
            buffer.add(
                {name: value.cpu().numpy() for name, value in observation.items()},
                rollout.latents[t + 1].cpu().numpy(),
                rollout.rewards.cpu().numpy() if t == steps - 1 else np.zeros(n, np.float32),
                np.full(n, t == 0),
                self.ppo.policy.predict_values(observation),
                # PPO's own policy has the whole log-density; rollouts leave the entropy out.
                rollout.log_probs[t] - Gaussian(rollout.latents[t + 1], stds[t].expand(n)).entropy()
                if dense[t]
                else torch.zeros_like(rollout.log_probs[t]),
            )
        buffer.compute_returns_and_advantage(torch.zeros(n), dones=np.ones(n, bool))


class _Stepping:
    """Stands in for the optimizer of ``PPO.train``: each step is the algorithm's own."""

    def __init__(self, algorithm: SB3PPO) -> None:
        self._algorithm = algorithm

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._algorithm.optimizer.param_groups

    def zero_grad(self) -> None:
        self._algorithm.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self._algorithm.gradient_steps.after_backward()
        self._algorithm.step(self._algorithm.optimizer)


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which Stable-Baselines3 draws minibatches, and restore it."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
