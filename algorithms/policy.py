"""The policy: a pretrained denoiser that is tuned, and the sampler that makes a Gaussian policy of it.

Sampling and scoring run in chunks of one fixed number of rows, the last one padded, because kernels depend on the
batch's shape: only so is the importance ratio exactly 1 before the first update.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from algorithms.fields import check_fields
from algorithms.observations import observation_tensors
from algorithms.sharding import is_sharded, whole
from diffusion_gym.models import Conditioning, DiffusionModel, LoRAConfig
from diffusion_gym.models.base import GUIDANCE, TEXT_CONDITIONING, Trained
from diffusion_gym.models.checkpointing import enable_gradient_checkpointing
from diffusion_gym.transitions import Gaussian, Sampler, make_transition


@dataclass(frozen=True)
class PolicyConfig:
    """How the pretrained model samples, and which of its weights are trained."""

    train: Trained = "denoiser"
    """The denoiser, its text encoder (TexForce, arXiv 2311.15657; Stable Diffusion 1.x and 2.x, and SDXL), or both."""
    trainable: Literal["lora", "full"] = "lora"
    """Train low-rank adapters (small files, little memory) or all weights (as in the paper)."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Adapters; used only with trainable 'lora'."""
    sampler: Sampler = "auto"
    """ddim with eta, or ancestral ddpm; of flow models flow-sde or cps. "auto": ddim, and of flow models flow-sde."""
    eta: float = 1.0
    """Noise of DDIM, flow-sde (0.7 in Flow-GRPO) and cps, from 0 (none, nothing to train) to 1, as the paper has it."""
    guidance_scale: float = 1.0
    """Guidance in sampling and training; 1 is none and costs half; the paper uses 5. Flux dev: an input, 3.5."""
    chunk_size: int = 16
    """Rows a forward pass, halved where memory runs out; more is faster on a GPU; results change by rounding alone."""
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    """Precision of the denoiser's forward pass; latents, log-probabilities and trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them; same gradient, a third more work."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        check_fields(self)
        if not 0.0 <= self.eta <= (math.inf if self.sampler == "flow-sde" else 1.0):
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}; only sampler 'flow-sde' may take more.")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale must be at least 0 (1: no guidance), got {self.guidance_scale}.")
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}.")

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, so that the policy encodes prompts itself."""
        return self.train != "denoiser"


@dataclass(frozen=True)
class Rows:
    """Transitions to sample or score, one a row.

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

    def padded(self, size: int) -> "Rows":
        """Return ``size`` rows, the last one repeated."""
        if len(self) == size:
            return self
        return self.select(torch.arange(size).clamp(max=len(self) - 1).to(self.latents.device))


#: Called with which rows a chunk holds, the padded chunk, and the Gaussians it was given.
OnChunk = Callable[[slice, Rows, Gaussian], None]


class DenoisingPolicy(nn.Module):
    """pi(x_{t-1} | x_t, t, c), a Gaussian around the denoiser's prediction."""

    def __init__(self, model: DiffusionModel, num_inference_steps: int, config: PolicyConfig) -> None:
        """Copy the model's denoiser; raises ValueError where model and config do not fit."""
        super().__init__()
        self.config, self.model = config, model
        #: The one module the forward pass goes through; a wrapper (DDP) may replace it, and FSDP shard it in place.
        self.denoiser: nn.Module = self._build_denoiser()
        self.transition = make_transition(model.schedule(num_inference_steps), config.sampler, config.eta)
        self._uncond = self._unconditional() if self.guided else None
        #: Rows a forward pass, in sampling and scoring alike; the configuration's, or less where memory ran out.
        self.chunk_size = config.chunk_size
        self.to(model.device).eval()
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.denoiser)

    @property
    def unwrapped(self) -> nn.Module:
        """The denoiser without the wrapper."""
        return self.denoiser.module if isinstance(self.denoiser, DistributedDataParallel) else self.denoiser

    @property
    def lora(self) -> LoRAConfig | None:
        """The adapters' configuration, or None where all weights are trained."""
        return self.config.lora if self.config.trainable == "lora" else None

    @property
    def conditioning(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """What the denoiser is given of an observation beside latent and time: name -> (shape of a row, dtype)."""
        shapes = {name: (tuple(shape), torch.float32) for name, shape in self.model.conditioning_shapes.items()}
        if not self.config.trains_text:
            return shapes
        rest = {name: value for name, value in shapes.items() if name not in TEXT_CONDITIONING}
        return {name: ((length,), torch.int64) for name, (length, _) in self.model.token_limits.items()} | rest

    @property
    def guided(self) -> bool:
        """Whether each row costs a second, unconditional forward."""
        return self.config.guidance_scale != 1.0 and not self.model.embeds_guidance

    @property
    def forwards_per_row(self) -> int:
        """UNet forwards a row: 2 with guidance, else 1."""
        return 2 if self.guided else 1

    @property
    def computes_in_float16(self) -> bool:
        """Whether gradients pass through float16, whose small values vanish unless the loss is scaled up."""
        weights = {parameter.dtype for parameter in self.denoiser.parameters()}
        return self.config.autocast == "float16" or torch.float16 in weights

    @property
    def num_inference_steps(self) -> int:
        """T."""
        return self.transition.schedule.num_inference_steps

    @property
    def trainable_steps(self) -> Tensor:
        """Indices of the steps that have a density, int64."""
        return self.transition.has_density.nonzero().flatten()

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: value for name, value in self.unwrapped.named_parameters() if value.requires_grad}

    def whole_denoiser(self) -> nn.Module:
        """Return the unwrapped denoiser with all its weights: itself, or a copy of one that is sharded.

        Of several ranks all must call this.
        """
        trained = self.trainable_parameters()
        if not any(map(is_sharded, trained.values())):
            return self.unwrapped
        with torch.random.fork_rng(), torch.no_grad():  # peft draws adapters, for nothing
            denoiser = self._build_denoiser().to(self.model.device).eval()
            for name, value in denoiser.named_parameters():
                if name in trained:
                    value.copy_(whole(trained[name]))
        return denoiser

    def model_output(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guided: bool = True
    ) -> Tensor:
        """Return the denoiser's prediction with guidance applied, (n, c, h, w), float32.

        Classifier-free guidance (Ho and Salimans 2022): ``u + guidance_scale (c - u)``, both halves in one forward. A
        guidance-distilled model takes the scale as an input instead. Not ``guided`` it is ``c`` alone.
        """
        if self.model.embeds_guidance:
            scale = torch.full((len(latents),), self.config.guidance_scale, device=latents.device)
            conditioning = {**conditioning, GUIDANCE: scale}
        if not (guided and self.guided):
            return self._forward(latents, timesteps, conditioning)
        assert self._uncond is not None
        both = {name: torch.cat([self._uncond[name].expand_as(value), value]) for name, value in conditioning.items()}
        output = self._forward(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both)
        uncond, cond = output.chunk(2)
        return uncond + self.config.guidance_scale * (cond - uncond)

    def distribution(self, rows: Rows) -> Gaussian:
        """Return p(x_{t-1} | x_t, c) of one chunk of rows, with gradients."""
        timesteps = self._timesteps(rows.step_index)
        output = self.model_output(rows.latents, timesteps, rows.conditioning)
        return self.transition(output, rows.latents, rows.step_index)

    def chunks(self, rows: Rows, padded: bool = True) -> Iterator[tuple[slice, Rows]]:
        """Yield (which rows, those rows padded to the chunk's size); not padded, their numbers depend on how many."""
        size = self.chunk_size
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            yield part, rows.select(part).padded(size if padded else part.stop - part.start)

    def log_prob(self, chunk: Rows, next_latents: Tensor) -> tuple[Tensor, Gaussian]:
        """Joint log-density of ``next_latents`` (m, c, h, w) under a padded chunk's first m rows, with gradients."""
        gaussian = self.distribution(chunk)
        padding = len(chunk) - len(next_latents)
        if padding:
            next_latents = torch.cat([next_latents, next_latents[-1:].expand(padding, *next_latents.shape[1:])])
        return gaussian.log_prob(next_latents)[: len(chunk) - padding], gaussian

    @torch.no_grad()
    def sample(
        self, rows: Rows, noise: Tensor | None, on_chunk: OnChunk | None = None, padded: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw the next latents.

        Args:
            rows: n transitions, all at the same step.
            noise: (n, c, h, w), standard normal; None takes the mean.
            on_chunk: sees what each chunk is drawn from.
            padded: whether the last chunk is, as it must be where log-densities are to be scored again.

        Returns:
            The next latents (n, c, h, w) and their joint log-densities (n,), both float32. Where the step has no
            density, or the mean was taken, the log-density is NaN: it may not be trained on.
        """
        latents, log_probs = [], []
        for part, chunk in self.chunks(rows, padded):
            gaussian = self.distribution(chunk)
            if on_chunk is not None:
                on_chunk(part, chunk, gaussian)
            if noise is None:
                latents.append(gaussian.mean[: part.stop - part.start])
                continue
            drawn_from = noise[part][torch.arange(len(chunk)).clamp(max=part.stop - part.start - 1).to(noise.device)]
            drawn = gaussian.sample(drawn_from)
            density = bool((gaussian.std > 0).all())
            log_prob = gaussian.log_prob(drawn) if density else torch.full_like(gaussian.std, torch.nan)
            latents.append(drawn[: part.stop - part.start])
            log_probs.append(log_prob[: part.stop - part.start])
        drawn_all = torch.cat(latents)
        return drawn_all, torch.cat(log_probs) if log_probs else torch.full_like(drawn_all.flatten(1)[:, 0], torch.nan)

    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's ``predict``: observation of one environment or of n -> action, and the state unchanged.

        Noise comes from torch's global generator. Chunks are not padded, for no ratio is taken of these actions: they
        equal a rollout's to float32 rounding. After the end (timestep 0) the latent itself is returned; on a grid that
        itself ends at the time 0 the end looks like the last step, and is denoised as one. No environment takes either.

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
            latents[which] = self.sample(rows, noise, padded=False)[0]
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
        encoded = self.model.encode_unconditional()
        if self.config.trains_text:
            encoded |= self.model.unconditional_tokens()
        return {name: encoded[name] for name in self.conditioning}

    def _timesteps(self, step_index: Tensor) -> Tensor:
        return self.transition.timesteps[step_index]

    def _forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if self.config.autocast == "none":
            return self.denoiser(latents, timesteps, conditioning).float()
        with torch.autocast(latents.device.type, dtype=getattr(torch, self.config.autocast)):
            return self.denoiser(latents, timesteps, conditioning).float()
