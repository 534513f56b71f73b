"""What an algorithm needs, declared once, and the checks of a configuration that follow from it."""

import dataclasses
from dataclasses import dataclass

from algorithms.config.base import AlgorithmConfig, PolicyConfig, divisor
from algorithms.parallel.ranks import Ranks
from diffusion_gym.models import DiffusionModel, LoRAConfig

#: Settings of adapters, which a model may recommend.
_LORA_FIELDS = tuple(field.name for field in dataclasses.fields(LoRAConfig))


@dataclass(frozen=True)
class Requirements:
    """What an algorithm needs with its present configuration; decides what rollouts store and what is refused."""

    trajectory: bool = False
    """Rollouts store all latents and log-probabilities, not the finished latents alone."""
    means: bool = False
    """Beside them the mean of every step, as it was sampled."""
    density: bool = False
    """Steps have a density: eta 0 is refused."""
    reference: bool = False
    """The starting model beside the policy, as ``self.reference``; its KL needs ``density`` too."""
    average: bool = False
    """The moving average of the weights, as ``self.average``: ``ema_decay`` 0 is refused."""
    reward_gradient: bool = False
    """The reward has a gradient with respect to the images: others are refused before anything is sampled."""
    several_rewards: bool = False
    """The reward is combined, of two terms or more: others are refused before anything is sampled."""
    several_ranks: bool = False
    """The update works on this rank's rows only, through ``sampled_chunks`` or ``row_chunks``."""


def check_config(name: str, needs: Requirements, config: AlgorithmConfig) -> None:
    """Raise ValueError for a configuration that the algorithm ``name`` cannot train with on any model."""
    policy = config.policy
    if (needs.density or config.kl_to_start) and policy.sampler != "ddpm" and not policy.has_noise:
        raise no_density(name, needs, policy.sampler, policy.eta)
    if needs.average and config.ema_decay == 0:
        raise ValueError(
            f"{name} needs the moving average of the weights, but ema_decay is 0; set it, for example to 0.9."
        )


def no_density(name: str, needs: Requirements, sampler: str, eta: object) -> ValueError:
    """Return the error for a sampler none of whose steps has a density."""
    who = name if needs.density else "The KL to the starting model"
    return ValueError(
        f"{who} needs a stochastic sampler, but with sampler={sampler!r} and eta={eta} "
        "no step has a density; set eta > 0 (DDPO uses 1, Flow-GRPO 0.7) and at least 2 steps."
    )


def check_fitted_prediction(name: str, cfg_training: bool, model: DiffusionModel) -> None:
    """Raise ValueError where a distilled model's prediction without guidance is to be fitted."""
    if not cfg_training and model.embeds_guidance:
        raise ValueError(
            f"{name} with cfg_training=False fits the prediction without guidance, but {model.name} is distilled: it "
            "takes the scale as an input and has no other prediction. Leave cfg_training at True."
        )


def check_ranks(name: str, needs: Requirements, config: AlgorithmConfig, ranks: Ranks) -> None:
    """Raise ValueError for more ranks than can share the work."""
    if ranks.size > 1 and not needs.several_ranks:
        raise ValueError(
            f"{name} was started on {ranks.size} ranks, but its update does not share its rows among them; start one "
            "process, or let the update use sampled_chunks() or row_chunks() and declare "
            "Requirements(several_ranks=True) (docs/several-gpus.md)."
        )
    if ranks.sharded and config.optimizer == "adamw8bit":
        raise ValueError(
            "optimizer 'adamw8bit' does not support sharded weights (FSDP); take 'adamw', or launch with --multi_gpu."
        )
    if ranks.sharded and (config.policy.compile or config.policy.channels_last):
        option = "compile" if config.policy.compile else "channels-last"
        raise ValueError(
            f"--policy.{option} does not support sharded weights (FSDP); leave it out, or launch with --multi_gpu."
        )
    each = config.images_per_iteration // getattr(config, "updates_per_iteration", 1) if needs.trajectory else 0
    if ranks.sharded and each % ranks.size:
        raise ValueError(
            f"with sharded weights (FSDP) the images of an update ({each}) must be a multiple of the number of ranks "
            f"({ranks.size}), so that all ranks make equally many forward passes; choose another images_per_iteration "
            "or updates_per_iteration."
        )
    if config.num_envs % ranks.size:
        raise ValueError(
            f"num_envs ({config.num_envs}) must be a multiple of the number of ranks ({ranks.size}), which share the "
            f"environments; start {divisor(config.num_envs, ranks.size)} instead, or choose another num_envs."
        )


def started(model: DiffusionModel, config: PolicyConfig) -> PolicyConfig:
    """Return the configuration with the adapters of the LoRA that is trained on, where none were asked for."""
    if model.start is None or config.trainable == "full":
        return config  # the model refuses the latter
    recommended = {name: value for name, value in model.recommended.settings("").items() if name in _LORA_FIELDS}
    unasked = (LoRAConfig(), dataclasses.replace(LoRAConfig(), **recommended))
    return dataclasses.replace(config, lora=model.start.lora) if config.lora in unasked else config
