"""What ``accelerate launch`` was asked for: how many processes, sharded or not, and options that are refused."""

import os
from collections.abc import Mapping

_DATA_PARALLEL = "launch with --multi_gpu, in which every rank holds all weights, or with --use_fsdp"
_OFF = ("false", "no", "0")
#: What ``accelerate launch`` or its configuration asks for: variable -> option, values that mean what is done here, and
#: what to do about others.
_LAUNCH_OPTIONS = {
    "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", _OFF, _DATA_PARALLEL),
    "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", _OFF, _DATA_PARALLEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("--use_parallelism_config", _OFF, _DATA_PARALLEL),
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": ("SageMaker's distributed type", _OFF, _DATA_PARALLEL),
    "XLA_USE_BF16": ("--tpu, with XLA_USE_BF16", _OFF, "train on GPUs or CPUs, for TPUs are not supported"),
    "XLA_DOWNCAST_BF16": ("--downcast_bf16", _OFF, "train on GPUs or CPUs, for TPUs are not supported"),
    "ACCELERATE_DYNAMO_BACKEND": (
        "--dynamo_backend",
        ("no",),
        "leave it out, for compiled networks are not supported",
    ),
    "ACCELERATE_MIXED_PRECISION": (
        "--mixed_precision",
        ("no",),
        "give --policy.autocast bfloat16 or float16 to train in its place, so that sampling and scoring share it",
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "--gradient_accumulation_steps",
        ("1",),
        "set an update's images with --images-per-iteration and --updates-per-iteration, and the rows in "
        "memory at a time with --policy.chunk-size; their gradients are added up",
    ),
}
_FOLLOWED = (
    "leave it out: here FSDP shards weights, gradients and moments by the networks' own blocks, gathers weights again "
    "for the backward pass, and offloads nothing; activations are computed again with --policy.gradient-checkpointing"
)
#: The same of what follows ``--use_fsdp``.
_FSDP_OPTIONS = {
    name: (f"--{name.lower()}", followed, _FOLLOWED)
    for name, followed in {
        "FSDP_SHARDING_STRATEGY": ("full_shard", "1"),
        "FSDP_RESHARD_AFTER_FORWARD": ("true", "full_shard"),
        "FSDP_OFFLOAD_PARAMS": _OFF,
        "FSDP_ACTIVATION_CHECKPOINTING": _OFF,
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": _OFF,
        "FSDP_AUTO_WRAP_POLICY": ("transformer_based_wrap",),
        "FSDP_TRANSFORMER_CLS_TO_WRAP": ("",),
        "FSDP_IGNORED_MODULES": ("",),
    }.items()
}


def launched_size() -> int:
    """Return how many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_with(name: str) -> bool:
    """Return whether the launcher was asked for "FSDP", or for the "CPU" beside GPUs."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1", "yes")


def check_launch_options() -> None:
    """Raise ValueError where a launcher was asked for what would not be followed, also of one process alone."""
    _check(_LAUNCH_OPTIONS)
    if launched_with("FSDP"):
        _check(_FSDP_OPTIONS)


def _check(options: Mapping[str, tuple[str, tuple[str, ...], str]]) -> None:
    for name, (option, followed, instead) in options.items():
        value = os.environ.get(name, "")
        if value and value.lower() not in followed:
            raise ValueError(
                f"accelerate launch, or Accelerate's configuration ({name}), asks for {option} {value}, which would "
                f"not be followed; expected {followed[0] or 'none'}: {instead} (docs/several-gpus.md)."
            )
