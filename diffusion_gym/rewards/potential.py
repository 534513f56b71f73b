"""Wrappers that give a reward at every step, single or vectorised: what the step has gained.

The potential of a state x_t is the reward of the image that a denoiser predicts from it; that of the last state is the
terminal reward. A step's reward is the potential after it minus the potential before it,

    r_t = R(decode(x_0 predicted from x_{t-1})) - R(decode(x_0 predicted from x_t))

so an episode's rewards sum to its terminal reward minus the potential of its first state, which no action changes:
policies are ranked as by the terminal reward alone (Ng, Harada and Russell 1999), as long as the potential is one fixed
function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.models import Conditioning
from diffusion_gym.models.base import NEGATIVE
from diffusion_gym.transitions import make_transition

#: ``(latents (n, ...), timesteps (n,), conditioning) -> model output``, as a policy's ``model_output``.
ModelOutput = Callable[[Tensor, Tensor, Conditioning], Tensor]


class Potential:
    """The reward of the image that a denoiser predicts from an environment's present state.

    Attributes:
        reward_queries: images that the reward has scored; wrappers add those of last steps.
    """

    def __init__(self, env: gymnasium.Env | VectorEnv, model_output: ModelOutput | None) -> None:
        """Build the model's own denoiser where none is given; raises as :class:`PotentialReward`."""
        mdp = getattr(env.unwrapped, "mdp", None)
        if not isinstance(mdp, DenoisingMDP):
            raise TypeError(
                f"a potential reward wraps a DiffusionDenoise environment, got {type(env.unwrapped).__name__}."
            )
        if model_output is None:
            if mdp.model.embeds_guidance:
                raise ValueError(
                    f"{mdp.model.name!r} is distilled: its denoiser takes the guidance scale as an input; give the "
                    "model_output of a policy, PotentialReward(env, policy.model_output)."
                )
            model_output = mdp.model.build_denoiser().requires_grad_(False).eval()
        self.mdp, self.reward_queries = mdp, 0
        self._model_output = model_output
        self._transition = make_transition(mdp.schedule, "auto", 0.0).to(mdp.model.device)

    @torch.no_grad()
    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Return the potentials (m,), float32, of m rows whose episodes have not ended, in one forward pass."""
        mdp, chosen = self.mdp, list(rows)
        observation = mdp.observation()
        step = torch.tensor(mdp.step_index[chosen].tolist(), device=mdp.model.device)
        latents = observation["latent"][chosen]
        named = mdp.model.conditioning_shapes
        conditioning = {n: v[chosen] for n, v in observation.items() if n.removeprefix(NEGATIVE) in named}
        output = self._model_output(latents, self._transition.timesteps[step], conditioning)
        x_0 = self._transition.predicted_x_0(output.float(), latents, step)
        self.reward_queries += len(chosen)
        return mdp.score(x_0, [mdp.row_records[row] for row in chosen]).rewards


class PotentialReward(gymnasium.Wrapper, RecordConstructorArgs):
    """``PotentialReward(env)``: each step is rewarded by what it adds to the predicted image's reward.

    ``info["potential"]`` has the potential of the state that was reached. An episode of T steps takes T forwards of the
    denoiser and T + 1 reward queries, one of them the terminal reward's; :attr:`reward_queries` counts them.
    """

    def __init__(self, env: gymnasium.Env, model_output: ModelOutput | None = None) -> None:
        """Wrap one environment.

        Args:
            env: a DiffusionDenoise environment; wrappers within it must leave its reward as it is.
            model_output: ``(latents, timesteps, conditioning) -> output``, such as ``policy.model_output``, for a
                potential with its guidance and its weights; rewards then change with them. None is the environment's
                pretrained denoiser, given the prompt, without guidance.

        Raises:
            TypeError: another environment.
            ValueError: a guidance-distilled model without ``model_output``.
        """
        RecordConstructorArgs.__init__(self, model_output=model_output)
        super().__init__(env)
        self._potential = Potential(env, model_output)
        self._value = 0.0

    @property
    def reward_queries(self) -> int:
        """Images that the reward has scored: potentials and terminal rewards."""
        return self._potential.reward_queries

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and score the image predicted from its first state."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._value = float(self._potential([0])[0])
        return observation, {**info, "potential": self._value}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move to the action; the reward is the potential there minus the one before."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self._value = self._value, float(reward if terminated else self._potential([0])[0])
        self._potential.reward_queries += int(terminated)
        return observation, self._value - before, terminated, truncated, {**info, "potential": self._value}


class VectorPotentialReward(VectorWrapper):
    """:class:`PotentialReward` for the environments of ``gymnasium.make_vec``, with NumPy or torch, and any autoreset.

    All running episodes are scored together. ``info`` has no potentials. With autoreset ``NEXT_STEP`` the step that
    begins a new episode has the reward 0.
    """

    def __init__(self, env: VectorEnv, model_output: ModelOutput | None = None) -> None:
        """Wrap n environments; arguments and errors as :class:`PotentialReward`'s."""
        super().__init__(env)
        self._potential = Potential(env, model_output)
        self._values = torch.zeros(env.num_envs, device=self._potential.mdp.model.device)

    @property
    def reward_queries(self) -> int:
        """Images that the reward has scored: potentials and terminal rewards."""
        return self._potential.reward_queries

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes, and score the images predicted from their first states."""
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._score(self._potential.mdp.step_index == 0)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Move to the actions; the rewards (n,) are the potentials there minus those before."""
        before, mdp = self._values.clone(), self._potential.mdp
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        self._score(mdp.step_index < mdp.num_inference_steps)
        ended = torch.as_tensor(terminated, device=before.device)
        self._potential.reward_queries += int(ended.sum())
        begun = torch.tensor((mdp.step_index == 0).tolist(), device=before.device)
        reached = torch.where(ended, torch.as_tensor(rewards, device=before.device), self._values)
        gained = torch.where(begun & ~ended, 0.0, reached - before)
        return observation, gained if isinstance(rewards, Tensor) else gained.cpu().numpy(), terminated, truncated, info

    def _score(self, mask: Any) -> None:
        """Compute the potentials of the rows (n,), bool."""
        rows = mask.nonzero()[0].tolist()
        if rows:
            self._values[rows] = self._potential(rows)
