"""``gymnasium.make("DiffusionDenoise-v0")``: one image per episode."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from diffusion_gym.envs.config import (
    DEFAULT_MODEL,
    DEFAULT_REWARD,
    build_mdp,
    check_options,
    check_render_mode,
)
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.envs.results import Scored
from diffusion_gym.models import DiffusionModel, ModelDtype
from diffusion_gym.prompt_records import Prompt, PromptLike
from diffusion_gym.prompts import PromptSpec
from diffusion_gym.rewards import RewardSpec

Observation = dict[str, np.ndarray]


class DenoiseEnv(gymnasium.Env[Observation, np.ndarray]):
    """Denoising an image with a pretrained diffusion model, as a Markov decision process.

    ## Description
    Each episode turns Gaussian noise into one image in T = ``num_inference_steps`` steps (Black et al. 2023,
    arXiv 2305.13301, section 4.3). The agent is the denoiser: at each step it sees the prompt, the time and the noisy
    latent, and names the next latent. The environment holds the prompt, the noise schedule, the decoder and the
    reward, but no denoiser, and its transition is deterministic: the next latent *is* the action. All randomness
    after the first latent is the policy's, so that its log-probabilities are exact.

    ## Action Space
    ``Box(-1000, 1000, (c, h, w), float32)``: the next latent x_{t-1}, in scaled latent units (those the denoiser
    sees; trajectories stay within about 10). A wrong shape, a wrong dtype, NaN or a value out of bounds is refused
    with an error and never clipped, because clipping would falsify the action's log-probability.

    ## Observation Space
    ``Dict`` of

    | key | space | meaning |
    |---|---|---|
    | latent | ``Box(-1000, 1000, (c, h, w), float32)`` | x_t, standard normal at the start |
    | timestep | ``Box(0, num_train_timesteps, (1,), float32)`` | training time of x_t, not always whole in a flow model; 0 after the last step, and at it too where the grid ends at the time 0 (leading spacing with ``steps_offset`` 0, linspace), where ``terminated`` tells the two apart |
    | prompt_embedding | ``Box(-10000, 10000, (L, D), float32)`` | the text encoder's output, L tokens of D values |

    Model families add keys: SDXL ``pooled_prompt_embedding`` (D2,) and ``time_ids`` (6,), the image's size and crop; a
    model that reads no prompt has a ``prompt_embedding`` of zeros, (1, 1). The shapes are the model's: on
    ``"emoji-animals"`` (c, h, w) is (4, 8, 8), on Stable Diffusion 1.x at 512 pixels (4, 64, 64).

    With ``prompt_tokens=True`` there are also ``prompt_tokens``, ``Box(0, vocabulary - 1, (L,), int64)``, and of SDXL's
    second text encoder ``prompt_tokens_2``: what a policy needs that encodes the prompt itself.

    ## Rewards
    0 until the last step, then the reward of the decoded image and its prompt: ``reward(images, prompts)``, or
    ``reward(images, prompts, metadata)``, with images (n, 3, H, W), uint8. Nothing is discounted or normalised here;
    advantages are the algorithm's business.

    ## Starting State
    x_T is standard normal, from ``torch.Generator().manual_seed(seed)`` as a diffusers pipeline draws it; the prompt
    is drawn from the prompt set, by its weights if it has any, with a stream of its own, or set with
    ``reset(options={"prompts": ["a cat"]})``, as text or record. ``reset()`` without a seed continues both streams.

    ## Episode End
    Terminated after T steps; never truncated. A further ``step`` raises RuntimeError.

    ## Information
    ``reset`` and ``step`` return in ``info``

    | key | type | meaning |
    |---|---|---|
    | prompt | ``str`` | the episode's text |
    | metadata | ``dict`` | the further fields of the prompt's record |
    | prompt_index | ``int`` | its place in the prompt set, -1 for a prompt from elsewhere |
    | step_index | ``int`` | steps taken, 0 to T |
    | image | ``(H, W, 3)``, uint8 | after the last step alone: the image that was rewarded |
    | rewards | ``dict`` of ``float`` | after the last step alone, of a combined reward: each reward's own score |

    ``env.unwrapped.score(latents, prompts)`` decodes and rewards finished latents without stepping, and
    ``env.unwrapped.set_reward(reward)`` replaces the reward.

    ## Arguments
    | argument | type | default | meaning |
    |---|---|---|---|
    | model | ``str``, folder or model | ``"emoji-animals"`` | also ``"exact-gaussian"``, ``"exact-mixture"`` (as flows ``"exact-flow-gaussian"``, ``"exact-flow-mixture"``), a diffusers folder or a hub id |
    | reward | ``str``, callable or mapping | ``"compressibility"`` | a registered name, ``"path/to/file.py:function"``, ``"name:weight,..."``, a callable ``(images (n, 3, H, W) uint8, prompts[, metadata]) -> (n,)``, or a mapping of either to weights |
    | prompts | ``str`` or list | the model's own | a prompt set's name, a file, or a list of texts or records ``{"prompt": text, ...}`` |
    | num_inference_steps | ``int`` | the model's own | T: 10 on emoji-animals and the exact models, 50 on Stable Diffusion |
    | render_mode | ``str`` | ``None`` | ``"rgb_array"``: ``render()`` shows the present latent decoded |
    | device | ``str`` | ``"cpu"`` | of the model: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` |
    | dtype | ``str`` | ``"float32"`` | of the frozen networks; also ``"bfloat16"``, ``"float16"`` |
    | height, width | ``int`` | the model's own | of the images, in pixels |
    | start_from, start_from_mode | ``str`` | none, ``"merge"`` | a LoRA (file, folder, hub id): merged, or with ``"train"`` trained on |
    | model_config | ``str`` | none | of a single-file checkpoint: a diffusers folder with the configurations of its parts |
    | scheduler | ``str`` | the model's own | a class of diffusers, or a folder |
    | model_variant | ``str`` | none | of the weights, such as ``"fp16"`` |
    | vae_tiling | ``bool`` | ``False`` | decode large images in overlapping tiles, which takes less memory |
    | prompt_tokens | ``bool`` | ``False`` | add the prompt's tokens to the observation, for policies that train the text encoder |

    ## Version History
    - v0: initial version.
    """  # noqa: E501 - tables cannot be wrapped

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's declaration

    def __init__(
        self,
        model: str | DiffusionModel = DEFAULT_MODEL,
        reward: RewardSpec = DEFAULT_REWARD,
        prompts: PromptSpec | None = None,
        num_inference_steps: int | None = None,
        render_mode: str | None = None,
        device: str = "cpu",
        dtype: ModelDtype = "float32",
        prompt_tokens: bool = False,
        **settings: Any,
    ) -> None:
        """See the class docstring. Raises ValueError or TypeError naming the argument that is wrong."""
        check_render_mode(render_mode)
        self.mdp: DenoisingMDP = build_mdp(
            model, reward, prompts, num_inference_steps, 1, device, dtype, settings, prompt_tokens
        )
        self.render_mode = render_mode
        self.observation_space = self.mdp.observation_space()  # type: ignore[assignment]
        self.action_space = self.mdp.action_space()

    @property
    def num_inference_steps(self) -> int:
        """T, the length of an episode."""
        return self.mdp.num_inference_steps

    def set_reward(self, reward: RewardSpec) -> None:
        """Replace the terminal reward."""
        self.mdp.set_reward(reward)

    def score(self, latents: Tensor, prompts: Sequence[PromptLike]) -> Scored:
        """Decode finished latents (n, c, h, w) and reward the images of n texts or records, as the last step does."""
        return self.mdp.score(latents, prompts)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; ``options={"prompts": [prompt]}`` sets its prompt, a text or a record."""
        prompts = check_options(options, ("prompts",)).get("prompts")
        if isinstance(prompts, str | Prompt | Mapping):
            prompts = [prompts]
        if seed is None and self._np_random is None:
            seed = secrets.randbits(63)
        self.mdp.reset([0], [seed], prompts)
        super().reset(seed=None if seed is None else int(seed))
        self._np_random = self.mdp.rng(0)
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move to the action, the next latent (c, h, w), float32.

        Raises:
            RuntimeError: before the first reset or after the end of the episode.
            ValueError, TypeError: an action that is refused (see the class docstring).
        """
        if self.mdp.step_index[0] >= self.num_inference_steps:
            raise RuntimeError("the episode is over (or was never begun); call reset() before step().")
        active = np.ones(1, dtype=bool)
        batch = action[None] if isinstance(action, np.ndarray | Tensor) else action
        result = self.mdp.step(self.mdp.check_actions(batch, active), active)
        info = self._info()
        if result.images is not None:
            info["image"] = _picture(result.images[0])
        if result.parts:
            info["rewards"] = {name: float(scores[0]) for name, scores in result.parts.items()}
        return self._observation(), float(result.rewards[0]), bool(result.finished[0]), False, info

    def render(self) -> np.ndarray | None:
        """Return the present latent decoded, (H, W, 3), uint8, or None without ``render_mode``."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs render_mode='rgb_array', given to gymnasium.make.")
            return None
        return _picture(self.mdp.model.decode(self.mdp.latents)[0])

    def _observation(self) -> Observation:
        observation = self.mdp.observation()
        return {name: value[0].cpu().numpy().copy() for name, value in observation.items()}

    def _info(self) -> dict[str, Any]:
        mdp = self.mdp
        return {
            "prompt": mdp.row_records[0].text,
            "metadata": mdp.row_records[0].metadata_copy(),
            "prompt_index": int(mdp.prompt_index[0]),
            "step_index": int(mdp.step_index[0]),
        }


def _picture(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).contiguous().to("cpu", torch.uint8).numpy().copy()
