"""Configuration: what all algorithms share, and frozen dataclasses to and from JSON."""

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

import tyro

from algorithms.config.deployed import DeployedConfig as DeployedConfig
from algorithms.config.fields import check_fields, check_guidance, check_kl_limit, check_patience
from diffusion_gym.choices import LoRAConfig, ModelSettings, Reduction, Sampler, Trained
from diffusion_gym.prompts import check_prompts, resolve_prompts
from diffusion_gym.recommended import recommended_for as recommends

if TYPE_CHECKING:
    from diffusion_gym.models import DiffusionModel

__all__ = [
    "AlgorithmConfig",
    "DeployedConfig",
    "EvaluationConfig",
    "PolicyConfig",
    "Reduction",
    "check_held_out",
    "check_kl_limit",
    "check_patience",
    "divisor",
    "from_dict",
    "override",
    "recommended",
    "to_dict",
]

T = TypeVar("T")
C = TypeVar("C", bound="AlgorithmConfig")


@dataclass(frozen=True)
class PolicyConfig:
    """How the pretrained model samples, and which of its weights are trained."""

    details: ClassVar[tuple[str, ...]] = (
        *("train", "lora", "sampler", "eta", "image_guidance_scale", "autocast", "gradient_checkpointing"),
        *("guidance_rescale", "negative_prompt"),
        *("compile", "channels_last"),
    )

    train: Trained = "denoiser"
    """Train the denoiser, its text encoder (TexForce, arXiv 2311.15657; Stable Diffusion 1, 2 and SDXL), or both."""
    trainable: Literal["lora", "full"] = "lora"
    """Train low-rank adapters (small files, little memory) or all weights (as in the paper)."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Low-rank adapters; used only with trainable 'lora'."""
    sampler: Sampler = "auto"
    """ddim (with eta) or ancestral ddpm; for flow models flow-sde or cps; for LCM models lcm. auto is the first one."""
    eta: Annotated[float | tuple[float, ...], tyro.conf.arg(metavar="FLOAT [..]")] = 1.0
    """Noise of ddim, flow-sde (0.7 in Flow-GRPO) and cps, from 0 (none) to 1 (as in the paper). Several numbers are the
    noise of each step, the noisiest step first."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 or less is none and takes half the passes; the paper uses 5. Flux dev: about 3.5."""
    guidance_rescale: float = 0.0
    """Share of the guided prediction with the std of the conditional one, 0 to 1 (Lin et al. 2023, who use 0.7)."""
    negative_prompt: Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="(default: none)")] = None
    """What guidance leads away from, for all prompts; prompts in a file may have their own instead."""
    image_guidance_scale: float = 1.0
    """How closely a model that edits keeps to the prompt's image (InstructPix2Pix: about 1.5). Above 1, beside a
    guidance_scale above 1, a third forward pass leads away from no image."""
    chunk_size: int = 16
    """Rows per forward pass; halved until it fits a GPU. Changes results by rounding only."""
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    """Precision of the denoiser's forward pass. Latents, log-probabilities and trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations again in the backward pass: same gradient, a third more work."""
    compile: bool = False
    """One torch.compile graph of chunk_size rows for sampling and training; smaller chunks are filled up to it."""
    channels_last: bool = False
    """Lay out latents and weights of convolutions with the channels last, which GPUs compute faster."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        check_fields(self)
        largest = math.inf if self.sampler == "flow-sde" else 1.0
        if not self.noise_levels or not all(0.0 <= level <= largest for level in self.noise_levels):
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}; only sampler 'flow-sde' may take more.")
        check_guidance(self.guidance_scale, self.guidance_rescale, self.image_guidance_scale, self.negative_prompt)
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}.")

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """:attr:`eta` of each step, or the one for all steps."""
        return self.eta if isinstance(self.eta, tuple) else (self.eta,)

    @property
    def has_noise(self) -> bool:
        """Whether any step can have noise, and so a density."""
        return any(level > 0 for level in self.noise_levels)

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, so that the policy encodes prompts itself."""
        return self.train != "denoiser"


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on fixed prompts and fixed noise, the same for every run and algorithm. Costs are not counted."""

    details: ClassVar[tuple[str, ...]] = ("images", "images_per_prompt", "seed", "held_out_prompts")

    images: int = 0
    """Images per evaluation; 0 turns evaluation off."""
    images_per_prompt: int = 1
    """Images of each evaluated prompt in a row; diversity and the watch for reward hacking need two of some prompt."""
    every: int = 1
    """Iterations between evaluations; the first is before training."""
    seed: int = 1_000_003
    """Fixes the initial latents and the noise."""
    held_out_prompts: Annotated[str | None, tyro.conf.arg(metavar="SET|FILE", help_behavior_hint="(default: none)")] = (
        None
    )
    """Also evaluate, separately, on prompts that are not trained on: a set such as animals@held-out, or a file."""
    deployed: DeployedConfig = field(default_factory=DeployedConfig)
    """Also evaluate, separately, with the sampler that the tuned model will be used with."""

    def __post_init__(self) -> None:
        """Refuse impossible counts and unknown prompts."""
        check_fields(self)
        if self.held_out_prompts is not None:
            check_prompts(self.held_out_prompts)
            if self.images == 0:
                raise ValueError("held_out_prompts needs an evaluation; set evaluation.images, for example to 64.")
        if self.deployed.is_on and self.images == 0:
            raise ValueError("evaluation.deployed needs an evaluation; set evaluation.images, for example to 64.")
        if self.images < 0 or self.every < 1 or self.images_per_prompt < 1:
            raise ValueError(
                "expected evaluation.images >= 0, evaluation.every >= 1 and evaluation.images_per_prompt >= 1, got "
                f"{self.images}, {self.every} and {self.images_per_prompt}."
            )
        if self.seed < 0:
            raise ValueError(f"evaluation.seed must be at least 0, got {self.seed}.")


@dataclass(frozen=True)
class AlgorithmConfig:
    """What every algorithm has; each adds its own fields."""

    #: Fields that ``train`` shows with ``--help-all`` only; a subclass may name more.
    details: ClassVar[tuple[str, ...]] = (
        *("num_envs", "rewards_beside_sampling", "optimizer", "adam_beta1", "adam_beta2", "weight_decay"),
        *("max_grad_norm", "max_skipped_updates", "ema_decay", "kl_to_start"),
    )

    images_per_iteration: int = 64
    """Images sampled and scored (reward queries) before each round of updates."""
    images_per_prompt: int = 1
    """Images in a row with the same prompt; 2 or more can be compared within an iteration."""
    num_envs: int = 64
    """Images sampled side by side; must divide images_per_iteration. Changes speed and memory, not results."""
    rewards_beside_sampling: bool = False
    """Score images in a thread while the next num_envs are sampled, for rewards that wait. Does not change results."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or AdamW with 8-bit moments (Dettmers et al. 2022; a quarter of the memory), which needs bitsandbytes."""
    learning_rate: float = 3e-4
    """AdamW's step size; in the paper 1e-5 for full weights of Stable Diffusion, 3e-4 for LoRA."""
    adam_beta1: float = 0.9
    """Decay of AdamW's moving mean of the gradient."""
    adam_beta2: float = 0.999
    """Decay of AdamW's moving mean of the squared gradient."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """A gradient with a larger norm is scaled down to this one."""
    max_skipped_updates: int = 10
    """Updates whose gradient is not finite are skipped; more than this many in a row stop the run."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average, used to evaluate, predict and export; 0 is none, 0.9 to 0.99 are usual."""
    kl_to_start: bool = False
    """Measure the exact KL to the starting model at evaluations, on the training prompts: one more forward per step."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Sampler and trained weights."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation on fixed prompts and noise."""
    seed: int = 0
    """Fixes all random numbers: on the CPU, with as many threads, the same seed gives the same run bit for bit."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        if callable(self.learning_rate):
            raise ValueError(
                "learning_rate must be a number here, because a configuration is saved as JSON; give a schedule to the "
                "algorithm: DDPO(env, config, learning_rate=schedule)."
            )
        check_fields(self)
        for name in ("images_per_iteration", "images_per_prompt", "num_envs"):
            _positive_integer(name, getattr(self, name))
        if self.images_per_iteration % self.num_envs:
            raise ValueError(
                f"num_envs ({self.num_envs}) must divide images_per_iteration ({self.images_per_iteration}), so that "
                f"callbacks see rounds of one size; {divisor(self.images_per_iteration, self.num_envs)} would."
            )
        if self.images_per_iteration % self.images_per_prompt:
            raise ValueError(
                f"images_per_prompt ({self.images_per_prompt}) must divide images_per_iteration "
                f"({self.images_per_iteration}), so that the images of one prompt are compared in one iteration; "
                f"{divisor(self.images_per_iteration, self.images_per_prompt)} would."
            )
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be a positive, finite number, got {getattr(self, name)}.")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        for name in ("weight_decay", "max_skipped_updates", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")

    @classmethod
    def for_model(cls: type[C], model: "str | Path | DiffusionModel", /, **changes: Any) -> C:
        """Return what a model recommends for training it with this algorithm, with changes, as :func:`override` takes.

        ``DDPO(env, **changes)`` begins with it, unless it is given a configuration, which is used as it is.

        Raises:
            TypeError, ValueError: as :func:`recommended` and :func:`override`.
        """
        return override(recommended(cls(), cls.variant(**changes), model), **changes)

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """Return the registered name of the algorithm that ``changes`` make of the defaults; here none."""
        return ""


def recommended(config: C, name: str, model: "str | Path | DiffusionModel") -> C:
    """Return the configuration with what a model recommends for the algorithm of a registered name.

    Raises:
        ValueError: an unknown model, or one that recommends what the configuration does not have, or refuses.
    """
    found = recommends(model)
    try:
        return override(config, **found.settings(name))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"what {str(getattr(model, 'name', model))!r} recommends does not fit {name or 'every algorithm'} "
            f"({found.source}): {error}"
        ) from error


def _positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def check_held_out(trained: Sequence[str], config: EvaluationConfig) -> None:
    """Raise ValueError where prompts to be held out of training are among those trained on."""
    if config.held_out_prompts is None:
        return
    common = sorted(set(resolve_prompts(config.held_out_prompts)) & set(trained))
    if common:
        raise ValueError(
            f"{len(common)} of the held-out prompts {config.held_out_prompts!r} are trained on ({common[0]!r}, ...); "
            "train on the other side of the split, for example prompts 'animals@train' with held_out_prompts "
            "'animals@held-out'."
        )


def divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of ``number`` up to ``at_most`` (both positive), for an error to suggest."""
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)


def override(config: T, **changes: Any) -> T:
    """Return the config with fields replaced, also fields of the dataclasses inside it (``guidance_scale=5``).

    Raises:
        TypeError: a name that is no field anywhere; the message lists the fields, or says where the name belongs.
    """
    known = field_values(config)
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise TypeError(
            _belongs(unknown[0])
            or f"{type(config).__name__} has no field {unknown[0]!r}; its fields are {sorted(known)}."
        )
    return _apply(config, changes)


def _belongs(name: str) -> str | None:
    """Say where an argument belongs that is not the algorithm's, but the environment's or that of ``learn``."""
    if name in ("total_timesteps", "callback", "log_interval", "tb_log_name", "reset_num_timesteps", "progress_bar"):
        return f"{name} belongs to learn: algorithm.learn({name}=...)."
    from diffusion_gym.envs.single import DenoiseEnv  # not at the top: the command line is parsed without it

    if name not in (*inspect.signature(DenoiseEnv).parameters, *ModelSettings.__dataclass_fields__):
        return None
    wrapper = (
        f", or TerminalReward(env, {name}) around one (diffusion_gym.rewards.wrappers)" if name == "reward" else ""
    )
    return (
        f"{name} belongs to the environment: gymnasium.make('DiffusionDenoise-v0', {name}=...){wrapper}; give that to "
        "the algorithm."
    )


def _apply(config: Any, changes: Mapping[str, Any]) -> Any:
    replaced: dict[str, Any] = {}
    own = {item.name for item in dataclasses.fields(config)}
    inner = {name: value for name, value in changes.items() if name not in own}  # a name at both levels is the outer's
    for item in dataclasses.fields(config):
        value = changes.get(item.name, getattr(config, item.name))
        # A dataclass that is given is changed too, by fields given beside it.
        if dataclasses.is_dataclass(value) and not getattr(value, "is_apart", False):
            value = _apply(value, {k: v for k, v in inner.items() if k in field_values(value)})
        replaced[item.name] = value
    return dataclasses.replace(config, **replaced)


def field_values(config: Any) -> dict[str, Any]:
    """Return the fields of a config and of the dataclasses in it, by the names that :func:`override` takes."""
    own = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    reached = (value for value in own.values() if not getattr(value, "is_apart", False))
    inside = [field_values(value) for value in reached if dataclasses.is_dataclass(value)]
    return {name: value for values in (*inside, own) for name, value in values.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dictionaries, JSON-serialisable."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Rebuild a config from ``to_dict``'s result (lists become tuples).

    Raises:
        ValueError: a field that the class does not have, or a value it refuses.
    """
    types = get_type_hints(cls)
    hints = {item.name: types[item.name] for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; its fields are {sorted(hints)}.")
    values: dict[str, Any] = {}
    for name, value in data.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            values[name] = from_dict(hints[name], value)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
