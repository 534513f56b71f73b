"""Stable-Baselines3's own PPO on the denoising environment: an actor-critic policy around the pretrained denoiser.

    env = gymnasium.make("DiffusionDenoise-v0")
    ppo = PPO(DenoisingActorCritic, env, policy_kwargs=actor_critic_arguments(env), n_steps=640, gamma=1.0)

The actor is the same Gaussian policy that DDPO trains; what differs is PPO's: a learned value function in place of each
prompt's running mean, generalised advantage estimation over the steps, and a clipped ratio of joint densities.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from algorithms.config.base import from_dict, override, to_dict
from algorithms.policy import DenoisingPolicy, PolicyConfig, Rows
from algorithms.sb3.observations import observation_tensors
from algorithms.sb3.vec_env import find_mdp
from diffusion_gym.models import load_model
from diffusion_gym.models.base import PROMPT_EMBEDDING
from diffusion_gym.transitions import Gaussian

_HIDDEN = 64


def actor_critic_arguments(env: Any, config: PolicyConfig | None = None, **overrides: Any) -> dict[str, Any]:
    """Return PPO's ``policy_kwargs`` for an environment, all of them JSON-serialisable, so that PPO can save them.

    Args:
        env: a DiffusionDenoise environment, single or vectorised, or its id.
        config: how the model samples and what is trained; default values if None.
        overrides: fields of the configuration (``trainable="full"``).

    Raises:
        TypeError: an environment of another kind, or an unknown field.
        ValueError: a value that is refused.
    """
    mdp = find_mdp(env, stepped=True)  # PPO steps the environment that it is given itself
    return {
        "model": mdp.model.name,
        "num_inference_steps": mdp.num_inference_steps,
        "dtype": mdp.model.dtype,
        "model_device": str(mdp.model.device),
        "model_settings": mdp.model.settings.given,
        "negative_prompts": mdp.negative_prompts,
        "config": to_dict(override(config or PolicyConfig(), **overrides)),
    }


class ObservationFeatures(BaseFeaturesExtractor):
    """What the value function sees: the latent, the time as a share, and the prompt's mean embedding; all flat."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        """Args: observation_space: the environment's."""
        latent, embedding = observation_space["latent"].shape, observation_space[PROMPT_EMBEDDING].shape
        assert latent is not None
        assert embedding is not None
        times = observation_space["timestep"]
        assert isinstance(times, spaces.Box)
        super().__init__(observation_space, features_dim=int(torch.tensor(latent).prod()) + 1 + embedding[-1])
        self._last_time = float(times.high[0])

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Return (n, features_dim)."""
        latent, time = observations["latent"].float().flatten(1), observations["timestep"].float() / self._last_time
        return torch.cat([latent, time, observations[PROMPT_EMBEDDING].float().mean(1)], 1)


class DenoisingActorCritic(ActorCriticPolicy):
    """The denoiser as PPO's actor, and a small network as its critic.

    Every action is the next latent (n, c, h, w), in scaled latent units. Its log-probability is the joint density over
    all dimensions, so PPO's ``clip_range`` is a bound on the joint ratio. A step without a density has the
    log-probability 0 and no gradient.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        use_sde: bool = False,
        *,
        model: str | None = None,
        num_inference_steps: int = 0,
        dtype: Any = "float32",
        model_device: str = "cpu",
        model_settings: Mapping[str, Any] = MappingProxyType({}),
        negative_prompts: bool = False,
        config: Mapping[str, Any] | None = None,
        build_actor: Callable[[], DenoisingPolicy] | None = None,
        **kwargs: Any,
    ) -> None:
        """Build actor and critic; PPO calls this with the ``policy_kwargs`` of :func:`actor_critic_arguments`.

        ``build_actor`` returns an actor that is there already, on the same model and of the same configuration.

        Raises:
            ValueError: no model was named, gSDE was asked for, or no step has a density.
        """
        if model is None or config is None:
            raise ValueError(
                "the policy needs the environment's model: PPO(DenoisingActorCritic, env, "
                "policy_kwargs=actor_critic_arguments(env))."
            )
        if use_sde:
            raise ValueError("use_sde=True is not possible: the noise of a step is the sampler's. Set use_sde=False.")
        self._given = {
            "model": model, "num_inference_steps": num_inference_steps, "dtype": dtype, "model_device": model_device,
            "model_settings": dict(model_settings), "negative_prompts": negative_prompts, "config": dict(config),
        }  # fmt: skip
        self._build_actor = build_actor or self._new_actor
        kwargs.setdefault("features_extractor_class", ObservationFeatures)
        super().__init__(observation_space, action_space, lr_schedule, use_sde=use_sde, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        """Build what :class:`ActorCriticPolicy` calls the networks."""
        self.denoising = self._build_actor()
        if len(self.denoising.trainable_steps) == 0:
            raise ValueError(
                "PPO needs a stochastic sampler, but no step has a density; set eta > 0 and 2 or more steps."
            )
        critic = nn.Sequential(nn.Linear(self.features_dim, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, 1))
        self.value_net = critic  # type: ignore[assignment]
        trained = [*self.denoising.trainable_parameters().values(), *critic.parameters()]
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _new_actor(self) -> DenoisingPolicy:
        given = self._given
        model = load_model(given["model"], given["model_device"], given["dtype"], **given["model_settings"])
        config = from_dict(PolicyConfig, given["config"])
        return DenoisingPolicy(model, given["num_inference_steps"], config, given["negative_prompts"])

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._given}

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (n, c, h, w), values (n, 1) and log-probabilities (n,)."""
        gaussian = self._gaussian(obs)
        actions = _act(gaussian, deterministic)
        return actions, self.predict_values(obs), _log_prob(gaussian, actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values (n, 1), log-probabilities (n,) with gradients, and the entropy (n,), which is constant."""
        gaussian = self._gaussian(obs)
        log_prob = _log_prob(gaussian, actions.reshape(gaussian.mean.shape))
        # That of a Gaussian depends on its std alone, which the noise schedule fixes: a constant bonus.
        dimensions = gaussian.mean[0].numel()
        entropy = dimensions * torch.where(gaussian.std > 0, gaussian.std, torch.ones_like(gaussian.std)).log()
        return self.predict_values(obs), log_prob, entropy

    def predict_values(self, obs: Any) -> Tensor:
        """Return (n, 1)."""
        return self.value_net(self.extract_features(obs, self.features_extractor))

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return _act(self._gaussian(observation), deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """Switch the critic alone: sampling and scoring must run in the same mode, so the denoiser stays as it is."""
        self.value_net.train(mode)

    def _gaussian(self, obs: Any) -> Gaussian:
        """p(x_{t-1} | x_t, c) of n rows."""
        needed = self.denoising.conditioning
        shapes = {name: shape for name, (shape, _) in needed.items()}
        tensors, _ = observation_tensors(obs, self.denoising.model, shapes)
        index = self.denoising.transition.schedule.step_index(tensors["timestep"].reshape(-1))
        last = self.denoising.num_inference_steps - 1  # after the end only values are asked for
        conditioning = {name: tensors[name].to(dtype) for name, (_, dtype) in needed.items()}
        rows = Rows(tensors["latent"].float(), index.clamp(max=last), conditioning)
        gaussians = [self.denoising.distribution(chunk) for _, chunk in self.denoising.chunks(rows)]
        return Gaussian(torch.cat([g.mean for g in gaussians]), torch.cat([g.std for g in gaussians]))


def _act(gaussian: Gaussian, deterministic: bool) -> Tensor:
    return gaussian.mean if deterministic else gaussian.sample(torch.randn_like(gaussian.mean))


def _log_prob(gaussian: Gaussian, latents: Tensor) -> Tensor:
    """Joint log-density (n,); 0, without a gradient, where the step has none."""
    dense = gaussian.std > 0
    log_prob = torch.zeros_like(gaussian.std)
    if bool(dense.any()):
        log_prob[dense] = Gaussian(gaussian.mean[dense], gaussian.std[dense]).log_prob(latents[dense])
    return log_prob
