"""The policy: a pretrained denoiser that is tuned, and the sampler that makes a Gaussian policy of it.

A forward pass takes one chunk of rows. Kernels round by the batch's shape and by a row's place in it, so training
scores the chunks that were sampled (see ``rollouts.py``).
"""

import copy
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.config.base import AlgorithmConfig, override
from algorithms.config.base import PolicyConfig as PolicyConfig
from algorithms.execution import check_compile, run_compiled, use_channels_last
from algorithms.guidance import check_image_guidance, check_negative_prompts, guidance
from algorithms.parallel.sharding import is_sharded, whole
from algorithms.requirements import started
from algorithms.sb3.observations import observation_tensors
from algorithms.sb3.vec_env import find_mdp
from diffusion_gym.models import Conditioning, DiffusionModel, LoRAConfig
from diffusion_gym.models.base import GUIDANCE, NEGATIVE, TEXT_CONDITIONING
from diffusion_gym.models.checkpointing import enable_gradient_checkpointing
from diffusion_gym.transitions import Gaussian, Transition, make_transition


@dataclass(frozen=True)
class Rows:
    """Transitions to sample or score, one per row.

    Attributes:
        latents: (n, c, h, w), float32, x_t.
        step_index: (n,), int64, 0 (noisiest) to T - 1.
        conditioning: name -> (n, ...).
    """

    latents: Tensor
    step_index: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        """Return n."""
        return len(self.latents)

    def select(self, index: Tensor | slice) -> "Rows":
        """Return some rows."""
        return Rows(
            self.latents[index],
            self.step_index[index],
            {name: value[index] for name, value in self.conditioning.items()},
        )


class DenoisingPolicy(nn.Module):
    """pi(x_{t-1} | x_t, t, c), a Gaussian around the denoiser's prediction."""

    def __init__(
        self, model: DiffusionModel, num_inference_steps: int, config: PolicyConfig, negative_prompts: bool = False
    ) -> None:
        """Copy the model's denoiser.

        Args:
            model: the pretrained model.
            num_inference_steps: T.
            config: how it samples, and what is trained.
            negative_prompts: whether each row has an unconditional side of its own (``DenoisingMDP.negative_prompts``).

        Raises:
            ValueError: model and config do not fit, or nothing would read the negative prompts.
        """
        super().__init__()
        check_negative_prompts(model, config, negative_prompts)
        config = started(model, config)
        self.config, self.model = config, model
        #: The one module that forward passes go through; FSDP shards it in place.
        self.denoiser: nn.Module = self._build_denoiser()
        #: What the denoiser takes of an observation beside latent and time: name -> (shape of a row, dtype).
        self.conditioning = _conditioning(model, config)
        if negative_prompts:
            self.conditioning |= {NEGATIVE + name: value for name, value in self.conditioning.items()}
        self._negative_prompts, self._embeds_guidance = negative_prompts, model.embeds_guidance
        self._sample_as(config, num_inference_steps)
        check_image_guidance(model, config, self.guided)
        #: Rows per forward pass, in sampling and scoring alike; the configuration's, or less where memory ran out.
        self.chunk_size = config.chunk_size
        self.to(model.device).eval()
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.denoiser)
        if config.channels_last:
            use_channels_last(self.denoiser, model.name)
        #: Whether the denoiser runs as a compiled graph; see ``execution.py``.
        self.compiles = config.compile
        if config.compile:
            check_compile(model.device)

    @classmethod
    def from_env(cls, env: Any, **settings: Any) -> "DenoisingPolicy":
        """Return the pretrained model of an environment as a policy that samples as the model recommends.

        Args:
            env: a DiffusionDenoise environment, single or vectorised, or its id.
            settings: fields of :class:`PolicyConfig` that differ, or of its ``lora`` (``guidance_scale=5.0``).

        Raises:
            TypeError: an environment of another kind, or an unknown field.
            ValueError: a value that is refused, or that does not fit the model or its number of steps.
        """
        mdp = find_mdp(env, stepped=True)  # the environment itself is stepped, so its wrappers have their effect
        config = override(AlgorithmConfig.for_model(mdp.model).policy, **settings)
        return cls(mdp.model, mdp.num_inference_steps, config, mdp.negative_prompts)

    def set_noise_levels(self, eta: float | Sequence[float]) -> None:
        """Sample with other noise from now on: one eta for all steps, or one for each, the noisiest step first.

        Raises:
            ValueError: a level out of range, or another number of levels than steps.
        """
        self.transition = self.with_noise(eta)
        #: eta of all steps, or of each.
        self.noise_levels = eta if isinstance(eta, int | float) else tuple(eta)
        #: Indices of the steps that have a density, int64.
        self.trainable_steps = self.transition.has_density.nonzero().flatten()

    def sampling_as(self, config: PolicyConfig, num_inference_steps: int) -> "DenoisingPolicy":
        """Return the same weights, shared and not copied, with another sampler, noise, guidance and number of steps.

        Raises:
            ValueError: they do not fit the model.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)  # else its transition would replace this one's
        other._sample_as(config, num_inference_steps)
        return other

    def _sample_as(self, config: PolicyConfig, num_inference_steps: int) -> None:
        if 0 < config.guidance_scale < 1 and not self._embeds_guidance:
            warnings.warn(
                f"guidance_scale {config.guidance_scale:g} means no guidance, like all up to 1 (as in diffusers); "
                "give 1, or more than 1 to strengthen the prompt.",
                stacklevel=3,
            )
        self.config = config
        #: Whether each row takes a second, unconditional forward; as in diffusers a scale up to 1 means no guidance.
        self.guided = config.guidance_scale > 1.0 and not self._embeds_guidance
        #: Whether it takes a third, without the prompt's image.
        self.image_guided = self.guided and config.image_guidance_scale > 1.0
        #: Denoiser forwards per row: 2 with guidance, 3 with that of images, else 1.
        self.forwards_per_row = 1 + self.guided + self.image_guided
        #: T.
        self.num_inference_steps = num_inference_steps
        self._schedule = self.model.schedule(num_inference_steps)
        self.set_noise_levels(config.eta)
        self._guide = guidance(self.model, config)
        self._uncond = self._unconditional() if self.guided and not self._negative_prompts else None

    @property
    def lora(self) -> LoRAConfig | None:
        """The adapters' configuration, or None where all weights are trained."""
        return self.config.lora if self.config.trainable == "lora" else None

    @property
    def computes_in_float16(self) -> bool:
        """Whether gradients pass through float16, whose small values vanish unless the loss is scaled up."""
        weights = {parameter.dtype for parameter in self.denoiser.parameters()}
        return self.config.autocast == "float16" or torch.float16 in weights

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: value for name, value in self.denoiser.named_parameters() if value.requires_grad}

    def whole_denoiser(self) -> nn.Module:
        """Return the denoiser with all its weights: itself, or a copy of one that is sharded or channels-last.

        Collective: call on every rank.
        """
        trained = self.trainable_parameters()
        if not self.config.channels_last and not any(map(is_sharded, trained.values())):
            return self.denoiser
        with torch.random.fork_rng(), torch.no_grad():  # peft draws adapters, which are overwritten
            denoiser = self._build_denoiser().to(self.model.device).eval()
            for name, value in denoiser.named_parameters():
                if name in trained:
                    value.copy_(whole(trained[name]))
        return denoiser

    def model_output(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guided: bool = True
    ) -> Tensor:
        """Return the denoiser's prediction with guidance applied, (n, c, h, w), float32.

        The model's family combines the predictions without and with the prompt, both from one forward. Of a model that
        edits, both have the row's image, and guidance by the image leads away from the prediction without it (Brooks et
        al. 2023, equation 3). A guidance-distilled model takes the scale as an input instead. With ``guided=False`` it
        is the prediction with the prompt alone.
        """
        given = {name: value for name, value in conditioning.items() if not name.startswith(NEGATIVE)}
        if self._embeds_guidance:
            scale = torch.full((len(latents),), self.config.guidance_scale, device=latents.device)
            given[GUIDANCE] = scale
        if not (guided and self.guided):
            return self._forward(latents, timesteps, given)
        own = {name: conditioning[NEGATIVE + name] for name in given} if self._uncond is None else self._uncond
        away = {name: own[name].expand_as(value) for name, value in given.items()}
        sides = [{**away, **{name: given[name] for name in self.model.image_conditioning}}, given]
        sides += [away] if self.image_guided else []
        stacked = {name: torch.cat([side[name] for side in sides]) for name in given}
        output = self._forward(torch.cat([latents] * len(sides)), torch.cat([timesteps] * len(sides)), stacked)
        uncond, cond, *without_image = output.chunk(len(sides))
        prediction = self._guide(uncond, cond)
        for bare in without_image:
            prediction = prediction + (self.config.image_guidance_scale - 1) * (uncond - bare)
        return prediction

    def distribution(self, rows: Rows, transition: Transition | None = None) -> Gaussian:
        """Return p(x_{t-1} | x_t, c) of one chunk of rows, with gradients; of :attr:`transition`, or of another one."""
        output = self.model_output(rows.latents, self.transition.timesteps[rows.step_index], rows.conditioning)
        return (self.transition if transition is None else transition)(output, rows.latents, rows.step_index)

    def with_noise(self, eta: float | Sequence[float]) -> Transition:
        """Return the policy's transition with other noise levels, as :meth:`set_noise_levels` takes them."""
        return make_transition(self._schedule, self.config.sampler, eta).to(self.model.device)

    def blank_rows(self, n: int) -> Rows:
        """Return n rows of zeros, which take the time and memory of any others."""
        device = self.model.device
        conditioning = {
            name: torch.zeros(n, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in self.conditioning.items()
        }
        latents = torch.zeros(n, *self.model.latent_shape, device=device)
        return Rows(latents, torch.zeros(n, dtype=torch.long, device=device), conditioning)

    def chunks(self, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        """Yield (which rows, those rows), at most ``chunk_size`` of them."""
        for start in range(0, len(rows), self.chunk_size):
            part = slice(start, min(start + self.chunk_size, len(rows)))
            yield part, rows.select(part)

    def log_prob(self, rows: Rows, next_latents: Tensor) -> tuple[Tensor, Gaussian]:
        """Score one chunk of rows, with gradients.

        Returns:
            The joint log-density (m,) of ``next_latents`` (m, c, h, w), relative to its mean
            (:meth:`Gaussian.relative_log_prob`), and the Gaussian.
        """
        gaussian = self.distribution(rows)
        return gaussian.relative_log_prob(next_latents), gaussian

    @torch.no_grad()
    def sample(self, rows: Rows, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw the next latents, ``chunk_size`` rows at a time.

        Args:
            rows: n transitions.
            noise: (n, c, h, w), standard normal; None takes the mean.

        Returns:
            The next latents (n, c, h, w) and their joint log-densities (n,), as :meth:`log_prob` has them, both
            float32. Where the step has no density, or the mean was taken, the log-density is NaN: it may not be
            trained on.
        """
        latents, log_probs = [], []
        for part, chunk in self.chunks(rows):
            gaussian = self.distribution(chunk)
            drawn = gaussian.mean if noise is None else gaussian.sample(noise[part])
            latents.append(drawn)
            log_probs.append(
                torch.full_like(gaussian.std, torch.nan) if noise is None else gaussian.relative_log_prob(drawn)
            )
        return torch.cat(latents), torch.cat(log_probs)

    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's ``predict``: observation of one environment or of n -> action, and the state unchanged.

        Noise comes from torch's global generator. After the end (timestep 0) the latent itself is returned; on a grid
        that itself ends at the time 0 the end looks like the last step, and is denoised as one. No environment takes
        either.

        Raises:
            TypeError, ValueError: an observation that is not this model's.
        """
        shapes = {name: shape for name, (shape, _) in self.conditioning.items()}
        tensors, single = observation_tensors(observation, self.model, shapes)
        latents = tensors["latent"].float().clone()
        index = self.transition.schedule.step_index(tensors["timestep"].reshape(-1))
        for step in index.unique().tolist():
            if step == self.num_inference_steps:
                continue
            which = (index == step).nonzero().flatten()
            conditioning = {name: tensors[name][which].to(dtype) for name, (_, dtype) in self.conditioning.items()}
            noise = None if deterministic else torch.randn_like(latents[which])
            rows = Rows(latents[which], index[which], conditioning)
            latents[which] = self.sample(rows, noise)[0]
        actions = latents.cpu().numpy()
        return (actions[0] if single else actions), state

    def set_training_mode(self, mode: bool) -> None:
        """Do nothing: sampling and scoring must run in the same mode, so the denoiser stays in evaluation mode."""

    def save(self, path: Any) -> None:
        """Refuse: a policy is saved with its algorithm. Raises NotImplementedError."""
        raise NotImplementedError(
            "a denoising policy is not saved alone; algorithm.save(path) writes it with all that training needs, and "
            "algorithm.export(folder) the tuned weights in diffusers' own format."
        )

    @classmethod
    def load(cls, path: Any, device: Any = "auto") -> "DenoisingPolicy":
        """Refuse, as :meth:`save` does."""
        raise NotImplementedError("a denoising policy is loaded with its algorithm: DDPO.load(path).policy.")

    def _build_denoiser(self) -> nn.Module:
        if self.config.trains_text:
            return self.model.build_text_denoiser(self.lora, self.config.train)
        return self.model.build_denoiser(self.lora)

    def _unconditional(self) -> Conditioning:
        """Return what guidance leads away from, one row, of which the text encoder in training makes its own."""
        negative = self.config.negative_prompt
        with_tokens = self.config.trains_text
        if negative is None:
            encoded = self.model.encode_unconditional() | (self.model.unconditional_tokens() if with_tokens else {})
        else:
            texts = [negative]
            encoded = self.model.encode_prompts(texts) | (self.model.tokenize(texts) if with_tokens else {})
        return {name: encoded[name] for name in self.conditioning}

    def _forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        forward = functools.partial(run_compiled, self.denoiser, self.chunk_size) if self.compiles else self.denoiser
        if self.config.channels_last:
            latents = latents.contiguous(memory_format=torch.channels_last)
        if self.config.autocast == "none":
            output = forward(latents, timesteps, conditioning).float()
        else:
            with torch.autocast(latents.device.type, dtype=getattr(torch, self.config.autocast)):
                output = forward(latents, timesteps, conditioning).float()
        # Log-densities are sums over a row, whose order follows the layout.
        return output.contiguous() if self.config.channels_last else output


def _conditioning(model: DiffusionModel, config: PolicyConfig) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    shapes = {name: (tuple(shape), torch.float32) for name, shape in model.conditioning_shapes.items()}
    if not config.trains_text:
        return shapes
    rest = {name: value for name, value in shapes.items() if name not in TEXT_CONDITIONING}
    return {name: ((length,), torch.int64) for name, (length, _) in model.token_limits.items()} | rest
