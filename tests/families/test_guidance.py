"""The family combines the predictions with and without the prompt; the policy asks it."""

import torch
from torch import Tensor

from algorithms import DenoisingPolicy, PolicyConfig
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
