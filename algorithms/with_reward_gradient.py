"""What algorithms share that follow the reward's own gradient: the need of one, an optimizer, and the gradient."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config.base import AlgorithmConfig
from diffusion_gym.prompt_records import Prompt
from diffusion_gym.rewards import reward_pixels

G = TypeVar("G", bound=AlgorithmConfig)


class WithRewardGradient(DiffusionAlgorithm[G]):
    """An algorithm with one optimizer, whose reward must have a gradient; a subclass gives :meth:`update`."""

    @classmethod
    def requires(cls, config: G) -> Requirements:
        """Return a gradient, and no density."""
        return replace(super().requires(config), reward_gradient=True, several_ranks=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.optimizer = self.make_optimizer()

    def _check_last_steps(self, name: str) -> None:
        """Raise ValueError where the field ``name`` is a number of last steps, and sampling takes fewer."""
        steps, most = getattr(self.config, name), self.policy.num_inference_steps
        if steps > most:
            raise ValueError(
                f"{name} is {steps}, but sampling takes {most} steps; set {name} to at most {most}, or "
                "num_inference_steps of the environment higher."
            )

    def _reward_gradient(self, x_0: Tensor, records: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Return the reward (m,) of latents (m, c, h, w), and its gradient with respect to them, likewise.

        Few images are decoded at a time, and the decoder's activations are freed before the next ones. As in
        :meth:`backward` the reward is scaled up on the way where gradients pass through float16.
        """
        model, scale = self.policy.model, self.gradient_steps.loss_scaler.get_scale()
        rewards, gradients = [], []
        for start in range(0, len(x_0), model.images_at_once):
            some = slice(start, start + model.images_at_once)
            latents, prompts = x_0[some].detach().requires_grad_(), records[some]
            scores = reward_pixels(
                self.mdp.reward,
                model.decode_pixels(latents),
                [prompt.text for prompt in prompts],
                [prompt.reward_metadata for prompt in prompts],
            ).rewards
            gradients.append(torch.autograd.grad(scale * scores.sum(), latents)[0] / scale)
            rewards.append(scores.detach().to(x_0.device))
        return torch.cat(rewards), torch.cat(gradients)

    def _decode_blank(self, latents: Tensor) -> None:
        """Decode as many latents as are decoded at a time, forward and backward: probes measure the memory."""
        model = self.policy.model
        model.decode_pixels(latents[: model.images_at_once].detach().requires_grad_()).sum().backward()
