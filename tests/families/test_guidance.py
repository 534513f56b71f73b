"""The family combines the predictions with and without the prompt; the policy asks it. Negative prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

import diffusion_gym
from algorithms import DDPO, DenoisingPolicy, PolicyConfig
from diffusion_gym import load_model
from diffusion_gym.envs.config import build_mdp
from diffusion_gym.models.exact import EXACT_MODELS, ExactModel


class Rescaled(ExactModel):
    """Guidance rescaled to the conditional prediction's std (Lin et al. 2023, equation 15)."""

    def guide(self, uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
        guided = super().guide(uncond, cond, guidance_scale)
        return guided * (cond.flatten(1).std(1) / guided.flatten(1).std(1))[:, None, None, None]


def test_a_familys_own_guidance_is_what_the_policy_predicts_with() -> None:
    x = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([900, 500, 100])
    outputs = {}
    for family in (ExactModel, Rescaled):
        model = family("mine", *EXACT_MODELS["exact-mixture"], torch.device("cpu"))
        config = PolicyConfig(guidance_scale=3.0, trainable="full")
        policy, conditioning = DenoisingPolicy(model, 5, config), model.encode_prompts(["north", "east", "south"])
        with torch.no_grad():
            outputs[family] = policy.model_output(x, times, conditioning)
            cond = policy.model_output(x, times, conditioning, guided=False)
    unguided = model.build_denoiser()(x, times, model.encode_prompts([""] * 3)).detach()
    torch.testing.assert_close(outputs[ExactModel], unguided + 3.0 * (cond - unguided))
    torch.testing.assert_close(outputs[Rescaled].flatten(1).std(1), cond.flatten(1).std(1))


#: One with a negative prompt, and one without.
RECORDS: list[Any] = [{"prompt": "north", "negative_prompt": "south"}, "east"]


def make(prompts: Any, model: str = "exact-mixture") -> gymnasium.Env:
    return gymnasium.make(
        diffusion_gym.ENV_ID, model=model, reward="exact-linear", prompts=prompts, num_inference_steps=3
    )


def test_guidance_leads_away_from_each_prompts_own_or_else_from_none() -> None:
    model = load_model("exact-mixture")
    mdp = build_mdp("exact-mixture", "exact-linear", RECORDS, 3, 1, "cpu", "float32")
    config = PolicyConfig(guidance_scale=3.0, trainable="full")
    policy = DenoisingPolicy(model, 3, config, negative_prompts=mdp.negative_prompts)
    x, times = torch.randn(2, 2, 1, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([900, 500])
    with torch.no_grad():
        guided = policy.model_output(x, times, mdp.conditioning_of(RECORDS))
        away, cond = (
            model.build_denoiser()(x, times, model.encode_prompts(p)) for p in (["south", ""], ["north", "east"])
        )
    torch.testing.assert_close(guided, away + 3.0 * (cond - away))


def test_training_with_negative_prompts_and_resuming(tmp_path: Path) -> None:
    """The ratio is exactly 1 before the update, and a run resumes from the file alone."""
    env = make(RECORDS)
    assert {"negative_prompt_embedding", "prompt_embedding"} < set(env.reset(seed=0)[0])
    algorithm = DDPO(env, images_per_iteration=8, num_envs=4, chunk_size=3, updates_per_iteration=1, guidance_scale=3.0)
    seen: list[float] = []
    update = algorithm.update
    algorithm.update = lambda rollout: seen.append((logged := update(rollout))["train/log_ratio_abs_max"]) or logged
    algorithm.learn(8 * 3)
    assert seen == [0.0]
    algorithm.save(tmp_path / "file")
    resumed = DDPO.load(tmp_path / "file")
    assert resumed.mdp.records == algorithm.mdp.records
    assert "negative_prompt_embedding" in resumed.policy.conditioning
    with pytest.raises(ValueError, match="new environment has no prompts with a 'negative_prompt', unlike"):
        resumed.set_env(make(["north"]))
    with pytest.raises(
        ValueError, match="'north' has the 'negative_prompt' 'south', and no prompt of the environment has"
    ):
        make(["east"]).reset(options={"prompts": RECORDS[:1]})


def test_trained_text_encoders_read_negative_prompts(build: Callable) -> None:
    """As the frozen ones do, before the first update; SDXL's zeros in the row without one."""
    folder = build("sdxl").folder
    mdp = build_mdp(folder, "compressibility", RECORDS, 3, 1, "cpu", "float32", prompt_tokens=True)
    x, times = torch.randn(2, *mdp.model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 5])
    outputs = []
    for config in (PolicyConfig(guidance_scale=3.0), PolicyConfig(guidance_scale=3.0, train="text_encoder")):
        policy = DenoisingPolicy(mdp.model, 3, config, negative_prompts=True)
        given = mdp.conditioning_of(RECORDS)
        assert all(mdp.observation_space()[name].shape == given[name].shape[1:] for name in policy.conditioning)
        with torch.no_grad():
            outputs.append(policy.model_output(x, times, {name: given[name] for name in policy.conditioning}))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    ("settings", "prompts", "message"),
    [
        ({"negative_prompt": "south"}, ["north"], "negative_prompt 'south' needs guidance: set guidance_scale above 1"),
        ({}, RECORDS, "some prompts have a 'negative_prompt', which needs guidance; set guidance_scale above 1"),
        ({"negative_prompt": "", "guidance_scale": 2.0}, RECORDS, "of their own beside negative_prompt '' for all"),
    ],
)
def test_no_negative_prompt_is_dropped_in_silence(settings: dict[str, Any], prompts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPO(make(prompts), **settings)


def test_a_distilled_model_reads_no_negative_prompt(build: Callable) -> None:
    model = build("flux").model
    with pytest.raises(ValueError, match="takes the guidance scale as an input, so it reads no negative_prompt"):
        DenoisingPolicy(model, 3, PolicyConfig(guidance_scale=3.0, negative_prompt="dog"))
    with pytest.raises(ValueError, match=r"has the field 'negative_prompt', which the model .* does not read"):
        make(RECORDS, build("flux").folder)
