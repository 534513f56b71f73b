"""The forward-process family: AWM, DiffusionNFT, EPG and RAM, one loss of which each is a configuration.

The policy's own images are noised again, as in pretraining, and the denoising error there is weighed by the image's
advantage, which may be negative. So no step needs a density, a rollout keeps its finished latents alone, and the
sampler may be any. What holds the policy is an anchor to an old policy, to the starting model, or to both:

    surrogate(A, output, old, target) + anchor_old w |output - old|^2 + anchor_start |output - start|^2
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from algorithms.base import Requirements
from algorithms.config.forward_process import ForwardProcessConfig as ForwardProcessConfig
from algorithms.losses import forward_process_loss, mean_square, time_weights
from algorithms.metrics import Meter
from algorithms.parallel.split import RowChunk
from algorithms.requirements import check_fitted_prediction
from algorithms.rollouts import Rollout
from algorithms.seeding import Stream, generator
from algorithms.weight_average import WeightAverage
from algorithms.with_advantages import WithAdvantages
from diffusion_gym.models import Conditioning


@dataclass(frozen=True)
class Noised:
    """Images of one forward pass, noised again.

    Attributes:
        x_t: (m, c, h, w), float32.
        times: (m,), training times, on the latents' device.
        target: (m, c, h, w), what the network is to predict there.
        conditioning: name -> (m, ...).
    """

    x_t: Tensor
    times: Tensor
    target: Tensor
    conditioning: Conditioning


class ForwardProcess(WithAdvantages[ForwardProcessConfig]):
    """``ForwardProcess("DiffusionDenoise-v0", time_range=(0.65, 1.0)).learn(100_000)``."""

    config_class = ForwardProcessConfig

    @classmethod
    def requires(cls, config: ForwardProcessConfig) -> Requirements:
        """Return finished latents alone, of steps with or without a density; an anchor to the start needs it."""
        needs = super().requires(config)
        return replace(needs, reference=needs.reference or config.anchor_start > 0, several_ranks=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        config, schedule = self.config, self.policy.transition.schedule
        check_fitted_prediction(type(self).__name__, config.cfg_training, self.mdp.model)
        shares, (low, high) = schedule.timesteps / schedule.num_train_timesteps, config.time_range
        #: (T',), the sampler's times that are trained, on the CPU.
        self.times = schedule.timesteps[(low <= shares) & (shares <= high)].cpu()
        if len(self.times) == 0:
            raise ValueError(
                f"none of the sampler's {len(shares)} times lies in time_range {config.time_range}: as shares of the "
                f"training time they are {[round(share, 3) for share in shares.tolist()]}. Take a wider range."
            )
        #: The old policy where it is a moving average; with old_decay 0 it is the weights that began the iteration.
        self.old = WeightAverage(self.policy.trainable_parameters(), config.old_decay) if config.old_decay else None

    def sampling_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context with the old policy's weights, if it samples."""
        return self.old.applied() if self.old is not None and self.config.sample_old else contextlib.nullcontext()

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the old policy's weights, where they are a moving average."""
        return {} if self.old is None else self.old.tensors

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Make each pass's updates on noised images, then let the old policy follow."""
        config, meter = self.config, Meter(self.ranks)
        advantages = self.clipped_advantages(rollout)
        source = generator(config.seed, Stream.UPDATES, self.iteration)
        old = self.old
        if old is None and config.has_old and config.compares:
            old = WeightAverage(self.policy.trainable_parameters(), 0.0)
        for _ in range(config.passes):
            for images in self._shares(source):
                self._train_on(rollout, images, advantages, old, source, meter)
        if self.old is not None:
            self.old.update(min(config.old_decay, config.old_warmup * (self.iteration + 1)))
        return meter.means() | self.advantage_metrics(rollout, advantages)

    def _shares(self, source: torch.Generator) -> Iterator[Tensor]:
        """Yield the images (k,) of each update of a pass: whole groups in a row, dealt out at random."""
        config = self.config
        groups = torch.arange(config.images_per_iteration).reshape(-1, config.images_per_prompt)
        order = torch.randperm(len(groups), generator=source)
        for share in order.chunk(config.updates_per_iteration):
            yield groups[share].flatten()

    def _train_on(
        self,
        rollout: Rollout,
        images: Tensor,
        advantages: Tensor,
        old: WeightAverage | None,
        source: torch.Generator,
        meter: Meter,
    ) -> None:
        """Make one update on a share of the images."""
        config, schedule = self.config, self.policy.transition.schedule
        rows = images.repeat_interleave(config.draws_per_image).to(rollout.final_latents.device)
        draws, elsewhere = self._draw(rollout, len(images), source), None
        if config.anchor_everywhere:
            elsewhere = schedule.draw_times(len(rows), source), torch.randn(draws[1].shape, generator=source)
        for chunk in self.row_chunks(rollout, rows):
            loss, seen = self._loss(self._noised(rollout, chunk, *draws), advantages[chunk.images], old)
            self.backward(chunk.weight * loss.sum() / len(rows))
            if elsewhere is not None:  # after the other's activations were freed
                noised = self._noised(rollout, chunk, *elsewhere)
                pull, drifts = self._anchors(noised, old)
                self.backward(chunk.weight * pull.sum() / len(rows))
                seen |= drifts
            meter.add(seen, chunk.weight)
        meter.add({"train/grad_norm": self.step(self.optimizer)})
        anchors = (config.anchor_old > 0) + (config.anchor_start > 0)
        compared = old is not None and config.compares_output  # by the surrogate
        still = anchors + compared if elsewhere is not None else (old is not None) + (config.anchor_start > 0)
        trained = 2 if elsewhere is not None else 1
        self.count_rows(trained * len(rows), guided=config.cfg_training, reference=still * len(rows))

    def _draw(self, rollout: Rollout, n: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return times (n * K,) and noises (n * K, c, h, w) of n images, K in a row each, on the CPU.

        Each time is uniform over :attr:`times`; the K of an image are spread evenly over them.
        """
        config, draws = self.config, self.config.draws_per_image
        copies = config.images_per_prompt if config.paired_noise else 1
        places = (torch.rand(n // copies, 1, generator=source) + torch.arange(draws) / draws) % 1 * len(self.times)
        times = self.times[places.long().clamp(max=len(self.times) - 1)]
        noise = torch.randn(n // copies, draws, *rollout.final_latents.shape[1:], generator=source)
        return times.repeat_interleave(copies, 0).flatten(), noise.repeat_interleave(copies, 0).flatten(0, 1)

    def _noised(self, rollout: Rollout, chunk: RowChunk, times: Tensor, noise: Tensor) -> Noised:
        here, rows = rollout.split.local(chunk.images), chunk.rows.cpu()
        x_0, t = rollout.final_latents[here], times[rows]
        x_t, target = self.policy.transition.schedule.noised(x_0, noise[rows].to(x_0.device), t)
        conditioning = {name: value[here] for name, value in rollout.conditioning.items()}
        return Noised(x_t, t.to(x_0.device), target, conditioning)

    def _loss(self, noised: Noised, advantages: Tensor, old: WeightAverage | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (m,) of the rows where advantages apply, and what is logged, each (m,)."""
        config = self.config
        here = not config.anchor_everywhere
        compared = old is not None and (config.compares_output or (here and config.anchor_old > 0))
        before = self._standing(old.applied(), noised) if old is not None and compared else None
        start = self._start(noised) if config.anchor_start > 0 and here else None
        output = self._output(noised)
        before = output.detach() if before is None else before
        error = before - noised.target
        weights = time_weights(self.policy.transition.schedule, noised.times, error, config.time_weight)
        loss, log_ratio = forward_process_loss(
            output, before, noised.target, advantages, weights, config.surrogate, config.clip_range
        )
        seen = {"train/denoising_error": mean_square(output - noised.target)}
        if compared:
            seen |= {"train/drift_from_old": mean_square(output - before), "train/log_ratio_abs": log_ratio.abs()}
            loss = loss + config.anchor_old * here * weights * seen["train/drift_from_old"]
        if start is not None:
            seen["train/drift_from_start"] = mean_square(output - start)
            loss = loss + config.anchor_start * seen["train/drift_from_start"]
        return loss, seen | {"train/loss": loss}

    def _anchors(self, noised: Noised, old: WeightAverage | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return both anchors' loss (m,), and the mean squared distances, each (m,), for the log."""
        config, still = self.config, dict[str, tuple[float, Tensor]]()
        if old is not None and config.anchor_old > 0:
            still["train/drift_from_old"] = config.anchor_old, self._standing(old.applied(), noised)
        if config.anchor_start > 0:
            still["train/drift_from_start"] = config.anchor_start, self._start(noised)
        output = self._output(noised)
        drifts = {name: mean_square(output - other) for name, (_, other) in still.items()}
        return torch.stack([still[name][0] * drift for name, drift in drifts.items()]).sum(0), drifts

    def _start(self, noised: Noised) -> Tensor:
        assert self.reference is not None
        return self._standing(self.reference.applied(), noised)

    @torch.no_grad()
    def _standing(self, weights: contextlib.AbstractContextManager[None], noised: Noised) -> Tensor:
        """Return the output with other weights than those in training, without gradients."""
        with weights:
            return self._output(noised)

    def _output(self, noised: Noised) -> Tensor:
        guided = self.config.cfg_training
        return self.policy.model_output(noised.x_t, noised.times, noised.conditioning, guided=guided)
