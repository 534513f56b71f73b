"""Turns the arguments of ``make`` and ``make_vec`` into a denoising MDP; shared by both environments."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from diffusion_gym.choices import DEFAULT_MODEL as DEFAULT_MODEL
from diffusion_gym.envs.mdp import DenoisingMDP, SharedReward
from diffusion_gym.models import DiffusionModel, ModelDtype, ModelSettings, load_model
from diffusion_gym.prompts import PromptSpec, load_prompts
from diffusion_gym.rewards import RewardSpec
from diffusion_gym.rewards.metadata import check_metadata

DEFAULT_REWARD = "compressibility"


def build_mdp(
    model: str | DiffusionModel,
    reward: RewardSpec,
    prompts: PromptSpec | None,
    num_inference_steps: int | None,
    num_envs: int,
    device: str,
    dtype: ModelDtype,
    settings: Mapping[str, Any] = MappingProxyType({}),
    prompt_tokens: bool = False,
) -> DenoisingMDP:
    """Check everything that can be checked without weights first, then load the model.

    ``settings`` are those of :func:`load_model`, name -> value; the other arguments are those of ``make``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    if not isinstance(prompt_tokens, bool):
        raise TypeError(f"prompt_tokens must be True or False, got {prompt_tokens!r}.")
    ModelSettings.of(**settings)
    shared = SharedReward.of(reward)
    named = None if prompts is None else load_prompts(prompts)
    if named is not None:
        check_metadata(shared.function, named.records)
    loaded = load_model(model, device, dtype, **settings)
    drawn = load_prompts(loaded.default_prompts) if named is None else named
    steps = loaded.recommended.num_inference_steps if num_inference_steps is None else num_inference_steps
    mdp = DenoisingMDP(loaded, shared, drawn, steps, num_envs, prompt_tokens)
    mdp.prompt_cache.tell_apart(drawn.texts)
    mdp.usable(drawn.records[:1])  # a prompt the model cannot encode is an error now, not at the first reset
    return mdp


def check_render_mode(render_mode: str | None) -> None:
    """Raise ValueError unless the mode is None or ``"rgb_array"``."""
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}.")


def check_options(options: Mapping[str, Any] | None, allowed: Sequence[str]) -> dict[str, Any]:
    """Return reset's options, refusing keys that this environment does not know."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options must be a mapping or None, got {type(options).__name__}.")
    given = dict(options or {})
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ValueError(f"unknown reset option {unknown[0]!r}; expected one of {sorted(allowed)}.")
    return given
