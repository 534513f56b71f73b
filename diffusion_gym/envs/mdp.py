"""The denoising Markov decision process for n images side by side, in torch (Black et al. 2023, section 4.3).

State ``(c, t, x_t)``, action ``x_{t-1}``, deterministic transition to the action, reward ``r(x_0, c)`` at the last
step and 0 before. The environment holds no denoiser: the policy owns the model's randomness and its weights.
"""

import copy
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from torch import Tensor

from diffusion_gym.envs.prompt_cache import ImageCache, PromptCache
from diffusion_gym.envs.results import Scored, Transitions
from diffusion_gym.envs.spaces import LATENT_BOUND, latent_space, observation_space
from diffusion_gym.models import Conditioning, DiffusionModel
from diffusion_gym.models.base import NEGATIVE
from diffusion_gym.prompt_records import Prompt, PromptLike, PromptSet, check_no_negative_prompts
from diffusion_gym.rewards import RewardFunction, RewardSpec, resolve_reward, score_images
from diffusion_gym.rewards.metadata import check_metadata

_MAX_SEED = 2**63


@dataclass
class SharedReward:
    """The terminal reward of an environment and of its twins: a new one reaches all of them.

    Attributes:
        function: what scores.
        spec: its text, where it was given as one.
    """

    function: RewardFunction
    spec: str | None

    @classmethod
    def of(cls, reward: RewardSpec) -> "SharedReward":
        """Resolve a specification, once: a reward may load a model."""
        return cls(resolve_reward(reward), reward if isinstance(reward, str) else None)


class DenoisingMDP:
    """n independent episodes; each row has its own prompt, noise stream and step index."""

    def __init__(
        self,
        model: DiffusionModel,
        reward: SharedReward,
        prompts: PromptSet,
        num_inference_steps: int,
        num_envs: int,
        prompt_tokens: bool = False,
        trusted: bool = False,
    ) -> None:
        """Build the grid and the spaces; prompts are encoded when first drawn.

        With ``trusted`` prompts and actions are those of a rollout: prompts are records that were checked once for all
        its rounds, actions are checked when an episode ends, so that no step waits for the device, and finished images
        are not scored, because the rollout scores them.

        Raises:
            ValueError: num_inference_steps or num_envs out of range, prompt tokens of a family that has none to train
                with, or a prompt that model or reward cannot use (:meth:`check`).
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}.")
        self.model, self.prompt_set = model, prompts
        self.records, self.prompts, self.prompt_weights = prompts.records, prompts.texts, prompts.scaled_weights
        self.prompt_tokens, self.trusted = prompt_tokens, trusted
        #: Whether prompts have negative prompts of their own; observations then hold each row's unconditional side.
        self.negative_prompts = any(record.negative_prompt is not None for record in prompts.records)
        if prompt_tokens and not model.token_limits:
            model.tokenize(prompts.texts[:1])  # says why there are none
        self.shared_reward = reward
        self.check(prompts.records)
        self._set_schedule(num_inference_steps)
        self.prompt_cache, self.image_cache = PromptCache(model, prompt_tokens), ImageCache(model)
        self._begin(num_envs)

    def _begin(self, num_envs: int) -> None:
        """Make rows that were never reset."""
        self.num_envs = num_envs
        self._noise: list[torch.Generator | None] = [None] * num_envs
        self._prompt_rng: list[np.random.Generator | None] = [None] * num_envs
        self.latents = torch.zeros(num_envs, *self.model.latent_shape, device=self.model.device)
        self.step_index = np.full(num_envs, self.num_inference_steps, dtype=np.int64)
        self.row_records = [Prompt("")] * num_envs
        self.prompt_index = np.full(num_envs, -1, dtype=np.int64)
        self._conditioning: Conditioning | None = None

    def _set_schedule(self, num_inference_steps: int) -> None:
        self.schedule = self.model.schedule(num_inference_steps)
        #: T, the length of an episode.
        self.num_inference_steps = self.schedule.num_inference_steps
        self._times = torch.cat([self.schedule.timesteps.float(), torch.zeros(1)]).to(self.model.device)

    def with_steps(self, num_inference_steps: int) -> "DenoisingMDP":
        """Return a twin whose episodes have another length. Raises ValueError for one that the schedule refuses."""
        twin = self.twin(self.num_envs, trusted=self.trusted)
        twin._set_schedule(num_inference_steps)
        twin._begin(self.num_envs)
        return twin

    def twin(self, num_envs: int, reward: RewardSpec | None = None, trusted: bool = False) -> "DenoisingMDP":
        """Return ``num_envs`` new episodes on the same model, prompts, steps and cache of encoded prompts.

        Both use the same reward, also after ``set_reward`` on either, unless ``reward`` is given.
        """
        shared = self.shared_reward if reward is None else SharedReward.of(reward)
        check_metadata(shared.function, () if reward is None else self.records)
        twin = copy.copy(self)
        twin.shared_reward, twin.trusted = shared, trusted
        twin._begin(num_envs)
        return twin

    def check(self, records: Sequence[Prompt]) -> None:
        """Raise ValueError for a record with a field that is not read, or without one that model or reward need."""
        self.model.check_records(records)
        if not self.negative_prompts:
            check_no_negative_prompts(records)
        check_metadata(self.reward, records)

    @property
    def reward(self) -> RewardFunction:
        """The terminal reward."""
        return self.shared_reward.function

    @property
    def reward_spec(self) -> str | None:
        """The reward's text, where it was given as one."""
        return self.shared_reward.spec

    def set_reward(self, reward: RewardSpec) -> None:
        """Replace the terminal reward, here and in all twins; raises ValueError if a prompt lacks what it needs."""
        fresh = SharedReward.of(reward)
        check_metadata(fresh.function, self.records)
        self.shared_reward.function, self.shared_reward.spec = fresh.function, fresh.spec

    def observation_space(self) -> spaces.Dict:
        """The space of one row's observation."""
        times = float(self.schedule.num_train_timesteps)
        return observation_space(self.model, times, self.prompt_tokens, self.negative_prompts)

    def action_space(self) -> spaces.Box:
        """The space of one row's action, the next latent."""
        return latent_space(self.model)

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None], prompts: Sequence[PromptLike] | None) -> None:
        """Start new episodes in some rows.

        Args:
            rows: indices of the rows.
            seeds: one for each of ``rows``; None continues the row's streams (or seeds them from the system).
            prompts: one text or record for each of ``rows``, or None to draw from the environment's own prompts.

        Raises:
            ValueError: a seed that is no integer in [0, 2^63), prompts whose number is not the rows', or one that the
                model or the reward cannot use.
        """
        given = None if prompts is None else self._records(prompts, len(rows))
        places = [] if given is None else self.prompt_set.indices(given)
        for seed in seeds:
            _check_seed(seed)
        for row, seed in zip(rows, seeds, strict=True):
            self._seed(row, seed)
        fresh = []
        for position, row in enumerate(rows):
            noise, rng = self._noise[row], self._prompt_rng[row]
            assert noise is not None
            assert rng is not None
            # One CPU generator per image, as in diffusers' randn_tensor.
            fresh.append(torch.randn(self.model.latent_shape, generator=noise))
            if given is None:
                index = self._draw_prompt(rng)
                record = self.records[index]
            else:
                index, record = places[position], given[position]
            self.prompt_index[row], self.row_records[row] = index, record
        latents = self.latents.clone()
        latents[list(rows)] = torch.stack(fresh).to(self.model.device)
        self.latents = latents
        self.step_index[list(rows)] = 0
        self._conditioning = None

    def step(self, actions: Tensor, active: np.ndarray) -> Transitions:
        """Move the active rows to their actions.

        Args:
            actions: (n, c, h, w), float32; checked by :meth:`check_actions`.
            active: (n,), bool.
        """
        if active.all():
            self.latents = actions.clone()
        else:
            mask = torch.tensor(active.tolist(), device=actions.device)
            self.latents = torch.where(mask.reshape(-1, *[1] * (actions.ndim - 1)), actions, self.latents)
        self.step_index[active] += 1
        finished = active & (self.step_index == self.num_inference_steps)
        rewards = torch.zeros(self.num_envs, device=self.model.device)
        if not finished.any():
            return Transitions(rewards, finished, None)
        rows = np.flatnonzero(finished).tolist()
        if self.trusted:
            self._check_bounds(self.latents[rows].abs().max())
            return Transitions(rewards, finished, self.model.decode(self.latents[rows]))
        scored = self.score(self.latents[rows], [self.row_records[row] for row in rows])
        rewards[rows] = scored.rewards
        return Transitions(rewards, finished, scored.images, scored.parts)

    def score(self, latents: Tensor, prompts: Sequence[PromptLike]) -> Scored:
        """Decode finished latents (n, c, h, w) and reward the images, exactly as the last step does.

        Args:
            latents: (n, c, h, w).
            prompts: n texts or records.

        Raises:
            TypeError: latents that are no tensor.
            ValueError: another shape, another number of prompts, values that are not finite, or a prompt without the
                metadata that the reward needs.
        """
        if not isinstance(latents, Tensor):
            raise TypeError(f"the latents to score must be a tensor, got {type(latents).__name__}.")
        if latents.shape != (len(prompts), *self.model.latent_shape) or not bool(latents.isfinite().all()):
            raise ValueError(
                f"expected finite latents to score, of shape {(len(prompts), *self.model.latent_shape)} for "
                f"{len(prompts)} prompts, got shape {tuple(latents.shape)}, finite: {bool(latents.isfinite().all())}."
            )
        records = self.prompt_set.find(prompts)
        self.check(records)
        images = self.model.decode(latents)
        scores = score_images(
            self.reward, images, [record.text for record in records], [record.reward_metadata for record in records]
        )
        return Scored(images, scores.rewards, scores.parts)

    def observation(self) -> dict[str, Tensor]:
        """Return the rows' latent (n, c, h, w), timestep (n, 1), 0 after the last step, and conditioning (n, ...).

        Not copies of latents and conditioning: do not write to them.
        """
        first = int(self.step_index[0])
        if (self.step_index == first).all():  # an index on the host would wait for the device
            timesteps = self._times[first].repeat(self.num_envs, 1)
        else:
            timesteps = self._times[self.step_index.tolist()][:, None]
        if self._conditioning is None:
            self._conditioning = self.conditioning_of(self.row_records)
        return {"latent": self.latents, "timestep": timesteps, **self._conditioning}

    def conditioning_of(self, prompts: Sequence[PromptLike]) -> Conditioning:
        """Return the prompts' conditioning, name -> (n, ...), on the model's device."""
        records = self.prompt_set.find(prompts)
        rows = self.prompt_cache([record.text for record in records])
        if self.model.image_conditioning:
            rows = [{**row, **image} for row, image in zip(rows, self.image_cache(records), strict=True)]
        if self.negative_prompts:
            negative = self.prompt_cache([record.negative_prompt for record in records])
            sides = [{NEGATIVE + name: value for name, value in side.items()} for side in negative]
            rows = [{**row, **side} for row, side in zip(rows, sides, strict=True)]
        return {name: torch.cat([row[name] for row in rows]).to(self.model.device) for name in rows[0]}

    def check_actions(self, actions: Any, active: np.ndarray) -> Tensor:
        """Return the actions (n, c, h, w) on the model's device, or raise an error that says what is wrong.

        Raises:
            TypeError: not an array or tensor, or not float32.
            ValueError: a wrong shape, or an active row that is not finite or out of bounds. Actions are refused and
                never clipped, because clipping would falsify their log-probability.
        """
        if isinstance(actions, np.ndarray):
            if actions.dtype != np.float32:
                raise TypeError(f"the action (next latent) must have dtype float32, got {actions.dtype}.")
            actions = torch.from_numpy(np.require(actions, requirements=["C", "W"]))  # W: copies read-only arrays alone
        if not isinstance(actions, Tensor):
            raise TypeError(f"the action (next latent) must be an array or tensor, got {type(actions).__name__}.")
        if actions.dtype != torch.float32:
            raise TypeError(f"the action (next latent) must have dtype float32, got {actions.dtype}.")
        if actions.shape != self.latents.shape:
            raise ValueError(
                f"the action (next latent) must have shape {tuple(self.latents.shape[1:])} per environment, together "
                f"{tuple(self.latents.shape)}; got {tuple(actions.shape)}."
            )
        actions = actions.detach().to(self.model.device)
        if not active.any():
            return actions
        checked = actions if active.all() else actions[np.flatnonzero(active).tolist()]
        self._check_bounds(checked.abs().max())  # NaN where there is one
        return actions

    def _check_bounds(self, largest: Tensor) -> None:
        """Raise ValueError where the largest absolute value of some actions is NaN or out of bounds."""
        value = float(largest)
        if value <= LATENT_BOUND:
            return
        problem = "holds NaN" if math.isnan(value) else f"lies outside [-{LATENT_BOUND:g}, {LATENT_BOUND:g}]"
        raise ValueError(
            f"the action (next latent) {problem}. It is refused, not clipped: clipping would falsify its "
            f"log-probability. Before the first update {self.model.name!r} itself gives such values in "
            f"{self.model.dtype} or in the autocast's precision: load it with dtype='bfloat16' or 'float32', and "
            "leave out autocast float16. After updates the policy has diverged: lower its learning rate."
        )

    def rng(self, row: int) -> np.random.Generator:
        """The generator that draws the row's prompts."""
        generator = self._prompt_rng[row]
        assert generator is not None
        return generator

    def _draw_prompt(self, rng: np.random.Generator) -> int:
        if self.prompt_weights is None:
            return int(rng.integers(len(self.prompts)))
        weights = np.asarray(self.prompt_weights)
        return int(rng.choice(len(weights), p=weights / weights.sum()))

    def _records(self, prompts: Sequence[PromptLike], n: int) -> list[Prompt]:
        """Return the records of prompts given to reset, after all checks: nothing has moved yet."""
        if self.trusted:
            return cast("list[Prompt]", list(prompts))
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise TypeError(
                f"options['prompts'] must be a list of {n} texts or records, got {type(prompts).__name__} {prompts!r}."
            )
        if len(prompts) != n:
            raise ValueError(f"options['prompts'] must hold {n} texts, one for each environment, got {len(prompts)}.")
        return self.usable(prompts, "options['prompts']")

    def usable(self, prompts: Sequence[PromptLike], what: str = "prompts") -> list[Prompt]:
        """Return the records of texts or records, encoded; raises as :meth:`check`, or for what cannot be encoded."""
        records = self.prompt_set.find(prompts, what)
        self.check(records)
        self.prompt_cache([record.text for record in records])
        if self.negative_prompts:
            self.prompt_cache([record.negative_prompt for record in records])
        return records

    def _seed(self, row: int, seed: int | None) -> None:
        if seed is None and self._noise[row] is not None:
            return
        if seed is None:
            seed = secrets.randbits(63)
        self._noise[row] = torch.Generator().manual_seed(int(seed))
        self._prompt_rng[row] = seeding.np_random(int(seed))[0]


def _check_seed(seed: object) -> None:
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < _MAX_SEED:
        raise ValueError(f"a seed must be an integer in [0, 2^63), got {seed!r}.")
