"""``gymnasium.make_vec("DiffusionDenoise-v0", num_envs=n)``: n images side by side, NumPy or torch."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from diffusion_gym.envs.config import (
    DEFAULT_MODEL,
    DEFAULT_REWARD,
    build_mdp,
    check_options,
    check_render_mode,
)
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.envs.results import Scored, Transitions
from diffusion_gym.models import DiffusionModel, ModelDtype
from diffusion_gym.prompt_records import PromptLike
from diffusion_gym.prompts import PromptSpec
from diffusion_gym.rewards import RewardSpec

Array = Any  # np.ndarray or Tensor, by the environment's ``output``


class DenoiseVectorEnv(VectorEnv[dict[str, Array], Array, Array]):
    """n independent :class:`~diffusion_gym.envs.single.DenoiseEnv`, batched; same spaces, rewards and info.

    Environment i seeded with s equals a single environment seeded with s + i: bit for bit in the initial latent and
    the prompt, and to rounding after that (the decoder sees another batch size).

    Arguments beside the single environment's:
        num_envs: n.
        output: ``"numpy"`` (default; what Gymnasium's vector wrappers need), or ``"torch"``: observations, rewards
            and dones are tensors on ``device`` and nothing leaves it.
        autoreset_mode: ``NEXT_STEP`` (default), ``SAME_STEP`` or ``DISABLED``, as enum or its value. With DISABLED,
            ``reset(options={"reset_mask": mask})`` restarts some environments.

    ``info`` has an entry and a mask ``_entry`` a key, as Gymnasium's vector environments do; with either output they
    are NumPy arrays, except ``image``: (n, H, W, 3) in NumPy and (n, 3, H, W) in torch, zeros where ``_image`` is
    false. ``metadata`` is an array of n dictionaries. ``rewards``, of a combined reward, is a dictionary of entries and
    masks: each reward's own scores by name, (n,), float32, array or tensor, 0 where ``_rewards`` is false. With
    SAME_STEP, ``final_obs`` and ``final_info`` hold what ended.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's declaration
    _OPTIONS: ClassVar[tuple[str, ...]] = ("prompts", "reset_mask")

    def __init__(
        self,
        num_envs: int = 1,
        model: str | DiffusionModel = DEFAULT_MODEL,
        reward: RewardSpec = DEFAULT_REWARD,
        prompts: PromptSpec | None = None,
        num_inference_steps: int | None = None,
        render_mode: str | None = None,
        device: str = "cpu",
        dtype: ModelDtype = "float32",
        prompt_tokens: bool = False,
        output: Literal["numpy", "torch"] = "numpy",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        """See the class docstring. Raises ValueError or TypeError naming the argument that is wrong."""
        check_render_mode(render_mode)
        if output not in ("numpy", "torch"):
            raise ValueError(f"output must be 'numpy' or 'torch', got {output!r}.")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            modes = [mode.value for mode in AutoresetMode]
            raise ValueError(f"autoreset_mode must be one of {modes} (or the enum), got {autoreset_mode!r}.") from error
        mdp = build_mdp(model, reward, prompts, num_inference_steps, num_envs, device, dtype, settings, prompt_tokens)
        self._init_from(mdp, output, render_mode)

    def _init_from(self, mdp: DenoisingMDP, output: str, render_mode: str | None) -> None:
        self.mdp, self.output, self.render_mode = mdp, output, render_mode
        self.num_envs = mdp.num_envs
        #: T, the length of an episode.
        self.num_inference_steps = mdp.num_inference_steps
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = mdp.observation_space()
        self.single_action_space = mdp.action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._ended = np.ones(self.num_envs, dtype=bool)  # ended, or never begun
        self._begun = False

    @classmethod
    def sharing(
        cls,
        mdp: DenoisingMDP,
        num_envs: int,
        output: Literal["numpy", "torch"] = "torch",
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
        reward: RewardSpec | None = None,
        trusted: bool = False,
    ) -> "DenoiseVectorEnv":
        """Return ``num_envs`` environments on another one's model, prompts, steps and reward.

        A reward that is set later, on either side, is both sides'; ``reward`` gives the new ones their own. With
        ``trusted``, which rollouts use, actions out of bounds are refused when their episode ends, so that no step
        waits for the device, and finished images come in ``info`` without a reward, because the rollout scores them.
        """
        env = cls.__new__(cls)
        env.autoreset_mode = autoreset_mode
        env._init_from(mdp.twin(num_envs, reward, trusted), output, None)
        return env

    def set_reward(self, reward: RewardSpec) -> None:
        """Replace the terminal reward."""
        self.mdp.set_reward(reward)

    def score(self, latents: Tensor, prompts: Sequence[PromptLike]) -> Scored:
        """Decode finished latents (n, c, h, w) and reward the images of n texts or records, as the last step does."""
        return self.mdp.score(latents, prompts)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start episodes in all environments, or in those of ``options["reset_mask"]``.

        Args:
            seed: s gives environment i the seed s + i; or one seed (or None) for each environment.
            options: ``prompts``: one text or record for each environment that is reset; ``reset_mask``: (n,), bool,
                array or tensor.
        """
        given = check_options(options, self._OPTIONS)
        mask = self._reset_mask(given.get("reset_mask"))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        if seeds is None:
            seeds = [None] * self.num_envs
        if isinstance(seeds, str) or not isinstance(seeds, Sequence | np.ndarray):
            raise TypeError(f"seed must be an integer, or {self.num_envs} of them, got {seed!r}.")
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one integer or {self.num_envs} of them, got {len(seeds)}.")
        rows = np.flatnonzero(mask)
        self.mdp.reset(rows.tolist(), [seeds[int(row)] for row in rows], given.get("prompts"))
        self._ended[mask] = False
        self._begun = True
        return self._observation(), self._info(mask)

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Move every environment to its action, the next latents (n, c, h, w), float32.

        Raises:
            RuntimeError: before the first reset; or, with autoreset DISABLED, after an episode's end.
            ValueError, TypeError: actions that are refused (see the single environment).
        """
        restart = self._ended.copy()
        if not self._begun:
            raise RuntimeError("the environments were never reset; call reset() before step().")
        if restart.any() and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise RuntimeError(
                f"the episodes of environments {np.flatnonzero(restart).tolist()} are over; call reset(), or "
                "reset(options={'reset_mask': mask}), before step()."
            )
        active = ~restart
        checked = actions if self.mdp.trusted else self.mdp.check_actions(actions, active)
        result = self.mdp.step(checked, active)
        if restart.any():
            rows = np.flatnonzero(restart).tolist()
            self.mdp.reset(rows, [None] * len(rows), None)
        self._ended = result.finished.copy()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and result.finished.any():
            info = self._same_step_reset(result.finished, self._info(result.finished, result))
        else:
            info = self._info(np.ones(self.num_envs, dtype=bool), result)
        dones = result.finished
        return (
            self._observation(),
            self._out(result.rewards),
            self._flags(dones),
            self._flags(np.zeros_like(dones)),
            info,
        )

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the present latents decoded, n pictures (H, W, 3), uint8, or None without ``render_mode``."""
        if self.render_mode is None:
            return None
        images = self.mdp.model.decode(self.mdp.latents).permute(0, 2, 3, 1).cpu().numpy()
        return tuple(images.copy())

    def _same_step_reset(self, finished: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        last = self._observation()
        rows = np.flatnonzero(finished).tolist()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows:
            final_obs[row] = {name: value[row] for name, value in last.items()}
        self.mdp.reset(rows, [None] * len(rows), None)
        self._ended[:] = False
        fresh = self._info(np.ones(self.num_envs, dtype=bool))
        return {
            **fresh,
            "final_obs": final_obs,
            "_final_obs": finished.copy(),
            "final_info": info,
            "_final_info": finished.copy(),
        }

    def _observation(self) -> dict[str, Array]:
        observation = self.mdp.observation()
        return {name: self._out(value) for name, value in observation.items()}

    def _info(self, mask: np.ndarray, result: Transitions | None = None) -> dict[str, Any]:
        mdp = self.mdp
        info: dict[str, Any] = {
            "prompt": np.array([record.text for record in mdp.row_records], dtype=object),
            "metadata": np.array([record.metadata_copy() for record in mdp.row_records], dtype=object),
            "prompt_index": mdp.prompt_index.copy(),
            "step_index": mdp.step_index.copy(),
        }
        info |= {f"_{name}": mask.copy() for name in info}
        if result is not None and result.images is not None:
            images = torch.zeros(self.num_envs, *mdp.model.image_shape, dtype=torch.uint8, device=mdp.model.device)
            images[np.flatnonzero(result.finished).tolist()] = result.images
            info["image"] = images if self.output == "torch" else images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            info["_image"] = result.finished.copy()
        if result is not None and result.parts:
            info["rewards"] = self._rewards(result)
            info["_rewards"] = result.finished.copy()
        return info

    def _rewards(self, result: Transitions) -> dict[str, Any]:
        """Return name -> (n,), float32, and the masks, as Gymnasium makes them of the single environments' dicts."""
        found: dict[str, Any] = {}
        for name, scores in result.parts.items():
            values = torch.zeros_like(result.rewards)
            values[np.flatnonzero(result.finished).tolist()] = scores.to(values)
            found |= {name: self._out(values), f"_{name}": result.finished.copy()}
        return found

    def _out(self, value: Tensor) -> Array:
        """Return a tensor as it is, or as a new array."""
        return value if self.output == "torch" else value.cpu().numpy().copy()

    def _flags(self, flags: np.ndarray) -> Array:
        if self.output == "numpy":
            return flags.copy()
        if flags.all() or not flags.any():  # made on the device: a copy would wait for it
            return torch.full((len(flags),), bool(flags[0]), device=self.mdp.model.device)
        return torch.tensor(flags.tolist(), device=self.mdp.model.device)

    def _reset_mask(self, mask: object) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            mask = mask.cpu().numpy()
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must be a bool array or tensor of shape ({self.num_envs},) with at least one "
                f"True, got {mask!r}."
            )
        if not self._begun and not mask.all():
            raise ValueError("the first reset must start all environments; give no reset_mask.")
        return mask
