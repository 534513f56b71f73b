"""The least that sampling and training can cost: the denoiser alone, on as many rows of the same shapes."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from algorithms import DiffusionAlgorithm
from algorithms.sampling import collect
from benchmarks.throughput.iteration import Rows
from diffusion_gym.models import Conditioning
from diffusion_gym.models.pipeline import PipelineModel
from diffusion_gym.rewards.metadata import metadata_arguments

_Batch = tuple[Tensor, Tensor, Conditioning]
#: Of pictures that are decoded together: one of 512 x 512, or 64 of 64 x 64.
_PIXELS_AT_ONCE = 512 * 512


class Floor:
    """An iteration of an algorithm without the program around it; weights and optimizer stay as they were.

    Sampling: the denoiser (with its adapters) on as many rows as a rollout takes; decoding: the VAE and the reward.
    Training: as many updates of as many rows, each with forward, backward, clipping and optimizer step, and as many
    rows without a gradient. Without environment, noise, transitions, log-densities, advantages, loss, storage and log.
    """

    def __init__(self, algorithm: DiffusionAlgorithm[Any], updates: int, rows: Rows) -> None:
        """Draw the rollout whose rows are used."""
        self.algorithm, self.policy, self.updates, self.rows = algorithm, algorithm.policy, updates, rows
        n = algorithm.config.images_per_iteration
        prompts = [algorithm.mdp.records[i % len(algorithm.mdp.records)] for i in range(n)]
        self.rollout = collect(algorithm.rollout_env, self.policy, prompts, algorithm.config.seed)
        # A learning rate of 0 costs as much as any other, and changes no weight.
        self.parameters = list(self.policy.trainable_parameters().values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=algorithm.config.weight_decay)

    def sampling(self, chunk: int) -> None:
        """Make one rollout's forward passes in chunks of so many images, of each step about as many."""
        steps = self.policy.num_inference_steps
        with torch.no_grad():
            for step in range(steps):
                n = self.rows.sampled * (step + 1) // steps - self.rows.sampled * step // steps
                for start in range(0, n, chunk):
                    self._forward(*self._batch(step, start, min(start + chunk, n)))

    def decoding(self, chunk: int) -> None:
        """Decode one rollout's pictures, so many at a time, and reward them."""
        model, n = self.algorithm.mdp.model, len(self.rollout)
        with torch.no_grad():
            parts = self.rollout.final_latents.split(chunk)
            if isinstance(model, PipelineModel):  # whose decode() has a size of its own
                pixels = torch.cat([model._to_pixels(part) for part in parts])
                images = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            else:
                images = torch.cat([model.decode(part) for part in parts])
            reward, records = self.algorithm.mdp.reward, self.rollout.records
            more, named = metadata_arguments(reward, n, [record.reward_metadata for record in records])
            reward(images, self.rollout.prompts, *more, **named)

    def sizes(self, phase: str, chunk: int) -> list[int]:
        """Return the sizes to try: around the program's ``chunk``; for decoding 1 to 16 pictures, if they are small."""
        n = len(self.rollout)
        if phase != "decoding":
            return sorted({min(size, n) for size in (max(1, chunk // 2), chunk, 2 * chunk)})
        pixels = math.prod(self.algorithm.mdp.model.image_shape[1:])
        return [size for size in (1, 2, 4, 8, 16) if size == 1 or (size <= n and size * pixels <= _PIXELS_AT_ONCE)]

    def training(self, chunk: int) -> None:
        """Make one iteration's updates in chunks of so many rows."""
        with torch.no_grad():
            for batch in self._training_chunks(chunk, self.rows.compared):
                self._forward(*self._batch(*batch))
        for _ in range(self.updates):
            for step, start, stop in self._training_chunks(chunk, self.rows.trained // self.updates):
                latents, times, conditioning = self._batch(step, start, stop)
                output = self._forward(latents, times, conditioning)
                (output - latents).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.algorithm.config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _training_chunks(self, chunk: int, rows: int) -> Iterator[tuple[int, int, int]]:
        """Yield (step, first image, last image + 1): slices of the rollout, since gathering rows costs more."""
        n, steps = len(self.rollout), self.policy.num_inference_steps
        for number, start in enumerate(range(0, rows, chunk)):
            size = min(chunk, rows - start)
            first = number * chunk % (n - size + 1)
            yield number % steps, first, first + size

    def _batch(self, step: int, start: int, stop: int) -> _Batch:
        """Return one step of some images; with guidance each row as often as it goes through the network."""
        latents = self.rollout.latents[step, start:stop]
        conditioning = {name: value[start:stop] for name, value in self.rollout.conditioning.items()}
        times = self.policy.forwards_per_row
        if times > 1:
            latents = torch.cat([latents] * times)
            conditioning = {name: torch.cat([value] * times) for name, value in conditioning.items()}
        return latents, self.policy.transition.timesteps[step].expand(len(latents)), conditioning

    def _forward(self, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        precision = self.policy.config.autocast
        dtype = None if precision == "none" else getattr(torch, precision)
        with torch.autocast(latents.device.type, dtype=dtype, enabled=dtype is not None):
            return self.policy.denoiser(latents, times, conditioning)
