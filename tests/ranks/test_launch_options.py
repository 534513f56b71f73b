"""What ``accelerate launch``, or its configuration, asks for is followed, or refused in one sentence."""

import pytest
from torch import nn

from algorithms.parallel.ranks import ALONE, current_ranks

REFUSED = {
    "ACCELERATE_DYNAMO_BACKEND": ("INDUCTOR", "--dynamo_backend INDUCTOR", "compiled networks are not supported"),
    "ACCELERATE_MIXED_PRECISION": ("bf16", "--mixed_precision bf16", "--policy.autocast bfloat16"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("4", "--gradient_accumulation_steps 4", "--updates-per-iteration"),
    "ACCELERATE_USE_DEEPSPEED": ("true", "--use_deepspeed", "--multi_gpu"),
    "ACCELERATE_USE_MEGATRON_LM": ("true", "--use_megatron_lm", "--multi_gpu"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("true", "--use_parallelism_config", "--use_fsdp"),
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": ("DATA_PARALLEL", "SageMaker", "--multi_gpu"),
    "XLA_USE_BF16": ("1", "--tpu", "TPUs are not supported"),
    "XLA_DOWNCAST_BF16": ("1", "--downcast_bf16", "TPUs are not supported"),
}
FSDP_REFUSED = {
    "FSDP_OFFLOAD_PARAMS": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true",
    "FSDP_SHARDING_STRATEGY": "NO_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "false",
    "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "FluxTransformerBlock",
    "FSDP_IGNORED_MODULES": ".*norm.*",
}
#: As ``accelerate launch`` sets them without being asked.
DEFAULTS = {
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_USE_DEEPSPEED": "false",
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_USE_MEGATRON_LM": "",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def _ranks(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], size: str | None) -> object:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {**environment, **({} if size is None else {"WORLD_SIZE": size})}.items():
        monkeypatch.setenv(name, value)
    return current_ranks.__wrapped__()  # a process remembers its ranks


@pytest.mark.parametrize("size", [None, "1", "2"])
@pytest.mark.parametrize("name", REFUSED)
def test_options_that_would_not_be_followed(monkeypatch: pytest.MonkeyPatch, name: str, size: str | None) -> None:
    """Of one process as of several, and before a process group is set up."""
    value, option, instead = REFUSED[name]
    with pytest.raises(ValueError, match=f"asks for {option}.* which would not be followed; expected ") as caught:
        _ranks(monkeypatch, {name: value}, size)
    assert name in str(caught.value)
    assert instead in str(caught.value)


@pytest.mark.parametrize("size", ["1", "2"])
@pytest.mark.parametrize("name", FSDP_REFUSED)
def test_options_of_fsdp_that_would_not_be_followed(monkeypatch: pytest.MonkeyPatch, name: str, size: str) -> None:
    value = FSDP_REFUSED[name]
    with pytest.raises(ValueError, match=rf"asks for --{name.lower()} {value.replace('*', '.')}, .*expected "):
        _ranks(monkeypatch, {"ACCELERATE_USE_FSDP": "true", name: value}, size)


def test_what_is_set_without_being_asked_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ranks(monkeypatch, DEFAULTS, "1") is ALONE
    assert _ranks(monkeypatch, {"ACCELERATE_USE_FSDP": "true"}, "1") is ALONE


def test_options_of_fsdp_count_with_fsdp_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ranks(monkeypatch, {"FSDP_OFFLOAD_PARAMS": "true"}, "1") is ALONE


def test_cpu_is_followed_or_refused_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a GPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    module = nn.Linear(1, 1)
    ALONE.share(module)
    with pytest.raises(ValueError, match=r"launched for 'cpu', but the model is on 'meta'"):
        ALONE.share(nn.Linear(1, 1, device="meta"))
