"""Text encoders in training: tokens in the observation, encoded by the policy; plain diffusers loads the export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from algorithms import DDPO, RWR, DenoisingPolicy, DiffusionAlgorithm, PolicyConfig
from algorithms.policy import Rows
from diffusion_gym import LoRAConfig, load_model
from diffusion_gym.models.text import NO_PROMPT

FAMILIES = ["sd", "sdxl"]
LORA = LoRAConfig(rank=2, alpha=16.0, targets=("all",))  # scaled by 8: ignoring alpha would shrink the update
PROMPTS = ["cat", "dog"]
TOKENS = {"sd": ["prompt_tokens"], "sdxl": ["prompt_tokens", "prompt_tokens_2"]}


def small(make_env: Callable, folder: str, cls: type = DDPO, **config: Any) -> DiffusionAlgorithm[Any]:
    settings: dict[str, Any] = {
        "num_envs": 4, "images_per_iteration": 4, "updates_per_iteration": 1, "chunk_size": 3, "guidance_scale": 3.0,
        "train": "text_encoder", "lora": LORA,
    }  # fmt: skip
    if cls is RWR:
        settings["images_per_prompt"] = 2
    return cls(make_env(folder, steps=2, prompt_tokens=True), **{**settings, **config})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_textual_inversion_of_several_vectors_is_read_whole(
    altered: Callable[..., str], make_env: Callable, name: str
) -> None:
    """Each tokenizer with its own, as the pipeline expands them; the policy's text encoders see what the frozen do."""

    def learned(pipe: Any) -> None:
        pipe.load_textual_inversion({"<toy>": torch.ones(3, 32)}, token="<toy>")
        if name == "sdxl":
            second = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
            pipe.load_textual_inversion({"<toy>": torch.ones(2, 32)}, token="<toy>", **second)

    model = load_model(altered(name, learned))
    tokens = model.tokenize(["a <toy>"])
    for key, vectors in zip(TOKENS[name], (3, 2), strict=False):
        words = getattr(model.pipe, key.replace("prompt_tokens", "tokenizer")).convert_ids_to_tokens(tokens[key][0])
        assert [word for word in words if "toy" in word] == ["<toy>", "<toy>_1", "<toy>_2"][:vectors]
        assert int(tokens[key].max()) < model.token_limits[key][1]
    encoders = {part: getattr(model.pipe, part) for part in model.text_encoders}
    encoded, whole = model.encode_tokens(encoders, tokens), model.encode_prompts(["a <toy>"])
    assert all(torch.allclose(encoded[key], whole[key], atol=1e-5) for key in encoded)
    assert model.read_of(["a <toy>"]) != model.read_of(["a <toy"])


@pytest.mark.parametrize(
    ("targets", "trained", "told"),
    [
        (
            ("to_q", "to_k"),
            "both",
            r"none of its text_encoder ends in one of them\. .*endings of its layers: text_encoder k_proj",
        ),
        (("to_q", "lora_te_q"), "both", r"none ends in 'lora_te_q'\. Expected 'attention'.*unet .*to_q"),
        (("to_q",), "text_encoder", r"none ends in 'to_q'\. Expected 'attention'.*text_encoder k_proj"),
    ],
)
def test_targets_meet_every_part(build: Callable, targets: tuple[str, ...], trained: Any, told: str) -> None:
    """peft is silent of a name that no layer has, so long as another has one."""
    model = build("sd").model
    with pytest.raises(ValueError, match=told):
        model.build_text_denoiser(LoRAConfig(targets=targets), trained)
    model.build_text_denoiser(LoRAConfig(targets=("to_q", "q_proj")), "both")


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_the_pipelines_and_a_valid_observation(build: Callable, make_env: Callable, name: str) -> None:
    built = build(name)
    env = make_env(built.folder, prompt_tokens=True)
    check_env(env.unwrapped, skip_render_check=True)
    observation, _ = env.reset(seed=0, options={"prompts": ["cat"]})
    pipe = built.plain()
    for key in TOKENS[name]:
        tokenizer = getattr(pipe, key.replace("prompt_tokens", "tokenizer"))
        space = env.observation_space[key]
        assert space.dtype == observation[key].dtype == np.int64
        assert space.shape == (16,)
        assert int(space.high.max()) == len(tokenizer) - 1
        wanted = tokenizer("cat", padding="max_length", max_length=16, truncation=True).input_ids
        assert observation[key].tolist() == wanted
    vector = gymnasium.make_vec(
        "DiffusionDenoise-v0", num_envs=2, model=built.folder, num_inference_steps=2, prompt_tokens=True
    )
    batch, _ = vector.reset(seed=0, options={"prompts": PROMPTS})
    assert batch in vector.observation_space
    assert (batch["prompt_tokens"][0] == observation["prompt_tokens"]).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_the_policy_encodes_what_the_environment_does(build: Callable, name: str, guidance: float) -> None:
    """To rounding, guided too: SDXL's unconditional embedding is zeros, Stable Diffusion's the empty prompt's."""
    model = load_model(build(name).folder)
    both = [
        DenoisingPolicy(model, 2, PolicyConfig(train=train, guidance_scale=guidance, trainable=trainable))
        for train, trainable in (("denoiser", "full"), ("text_encoder", "full"), ("both", "lora"))
    ]
    texts = ["cat", "", "a dog"]
    encoded = {**model.encode_prompts(texts), **model.tokenize(texts)}
    latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    outputs = []
    for policy in both:
        conditioning = {key: encoded[key] for key in policy.conditioning}
        with torch.no_grad():
            outputs.append(policy.model_output(latents, torch.full((3,), 500), conditioning))
    for output in outputs[1:]:
        assert float((output - outputs[0]).abs().max()) < 1e-5 * float(outputs[0].abs().max())


def test_no_prompt_is_zeros(build: Callable) -> None:
    model = load_model(build("sdxl").folder)
    tokens = model.unconditional_tokens()
    assert all((value == NO_PROMPT).all() for value in tokens.values())
    encoders = {name: getattr(model.pipe, name) for name in model.text_encoders}
    assert all((value == 0).all() for value in model.encode_tokens(encoders, tokens).values())


@pytest.mark.parametrize(
    ("name", "train", "trainable"),
    [
        ("sd", "text_encoder", "lora"), ("sd", "text_encoder", "full"), ("sd", "both", "lora"), ("sd", "both", "full"),
        ("sdxl", "text_encoder", "lora"), ("sdxl", "both", "full"),
    ],
)  # fmt: skip
def test_ratio_is_one_and_only_what_is_asked_for_changes(
    build: Callable, make_env: Callable, largest_log_ratios: Callable, sample: Callable, name: str, train: str,
    trainable: str,
) -> None:  # fmt: skip
    """On the training path, guidance on, the last chunk smaller."""
    model = load_model(build(name).folder)
    frozen = {part: _copy(module) for part, module in model.pipe.components.items() if hasattr(module, "state_dict")}
    algorithm = small(make_env, build(name).folder, train=train, trainable=trainable, learning_rate=1e-2)
    before = {key: value.detach().clone() for key, value in algorithm.policy.denoiser.named_parameters()}
    assert set(largest_log_ratios(algorithm).values()) == {0.0}
    rollout = sample(algorithm, 4)
    assert set(rollout.conditioning) == {*TOKENS[name], *(["time_ids"] if name == "sdxl" else [])}
    algorithm.update(rollout)
    assert algorithm.update(rollout)["train/log_ratio_abs_max"] > 1e-3
    changed = {
        key for key, value in algorithm.policy.denoiser.named_parameters() if not torch.equal(before[key], value)
    }
    text = {key for key in changed if key.startswith("encoders.text_encoder.")}
    second_text = {key for key in changed if key.startswith("encoders.text_encoder_2.")}
    denoiser = {key for key in changed if key.startswith("denoiser.")}
    assert text
    assert bool(second_text) == (name == "sdxl")
    assert bool(denoiser) == (train == "both")
    assert (trainable == "lora") == all("lora" in key for key in changed)
    for part, weights in frozen.items():  # the base stays as it is, for evaluation beside it and as a reference
        assert all(torch.equal(weights[key], value) for key, value in getattr(model.pipe, part).state_dict().items())


def _copy(module: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_adapters_share_the_frozen_weights(build: Callable, make_env: Callable) -> None:
    """In memory: an adapted network, or one that is not trained, holds the model's own weights."""
    algorithm = small(make_env, build("sd").folder, train="text_encoder", trainable="lora")
    model = algorithm.mdp.model
    own = {value.data_ptr() for part in ("unet", "text_encoder") for value in getattr(model.pipe, part).parameters()}
    named = dict(algorithm.policy.denoiser.named_parameters())
    assert {value.data_ptr() for key, value in named.items() if "lora" not in key} <= own
    assert not own & {value.data_ptr() for value in algorithm.policy.trainable_parameters().values()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_reaches_the_text_encoder(
    build: Callable, make_env: Callable, sample: Callable, checkpointing: bool
) -> None:
    """Its layers run again in the backward pass, and the ratio stays 1."""
    algorithm = small(make_env, build("sd").folder, trainable="full", gradient_checkpointing=checkpointing)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    layer = next(m for n, m in algorithm.policy.denoiser.named_modules() if n.endswith("layers.0.mlp.fc1"))
    rollout = sample(algorithm, 4)
    layer.register_forward_hook(count)
    metrics = algorithm.update(rollout)  # 2 steps of 4 images in chunks of 3 and 1
    assert calls == (8 if checkpointing else 4)
    assert metrics["train/log_ratio_abs_max"] == 0.0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("train", "trainable"), [("text_encoder", "lora"), ("both", "lora"), ("text_encoder", "full")])
def test_exports_draw_the_same_in_plain_diffusers(
    build: Callable, make_env: Callable, disturb: Callable, tmp_path: Path, name: str, train: str, trainable: str
) -> None:
    """Latents at eta 0 with guidance: of the tuned policy here, and of diffusers after loading what was exported."""
    built = build(name)
    algorithm = small(make_env, built.folder, train=train, trainable=trainable)
    disturb(algorithm, 0.1)
    algorithm.export(tmp_path / "tuned")
    pipe = built.plain() if trainable == "lora" else built.plain(tmp_path / "tuned")
    if trainable == "lora":
        pipe.load_lora_weights(str(tmp_path / "tuned"))
    theirs, untuned = (_draw(built, plain) for plain in (pipe, built.plain()))
    ours = _sampled(algorithm)
    scale = float((theirs - untuned).abs().max())
    assert scale > 1e-3
    assert float((theirs - ours).abs().max()) < 1e-3 * scale


def _draw(built: Any, pipe: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    return built.family.draw(pipe, PROMPTS, generators, "latent", 2, 3.0)


def _sampled(algorithm: DiffusionAlgorithm[Any]) -> Tensor:
    model, config = algorithm.mdp.model, algorithm.config.policy
    sampler = DenoisingPolicy(model, 2, PolicyConfig(eta=0.0, guidance_scale=3.0, train=config.train, lora=config.lora))
    sampler.denoiser = algorithm.policy.denoiser
    x = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(s)) for s in range(2)])
    encoded = {**model.encode_prompts(PROMPTS), **model.tokenize(PROMPTS)}
    for step in range(2):
        rows = Rows(x, torch.full((2,), step), {key: encoded[key] for key in sampler.conditioning})
        x, _ = sampler.sample(rows, torch.zeros_like(x))
    return x


@pytest.mark.parametrize(("cls", "train", "trainable"), [(DDPO, "both", "lora"), (RWR, "text_encoder", "full")])
def test_resumed_it_equals_a_run_that_never_stopped(
    build: Callable, make_env: Callable, tmp_path: Path, cls: type, train: str, trainable: str
) -> None:
    """To the bit; ``load`` makes the environment, tokens and all, by itself."""

    def begun() -> DiffusionAlgorithm[Any]:
        settings = {"batch_size": 4, "images_per_prompt": 2} if cls is RWR else {}
        algorithm = small(make_env, build("sd").folder, cls, train=train, trainable=trainable, **settings)
        return algorithm.learn(4 * 2)

    whole, stopped = begun(), begun()
    stopped.save(tmp_path / "run")
    resumed = cls.load(tmp_path / "run")
    assert resumed.mdp.prompt_tokens
    for algorithm in (whole, resumed):
        algorithm.learn(4 * 2, reset_num_timesteps=False)
    expected = whole.get_parameters()
    for part, tensors in resumed.get_parameters().items():
        assert set(tensors) == set(expected[part])
        assert all(torch.equal(value, expected[part][key]) for key, value in tensors.items())
    start = small(make_env, build("sd").folder, cls, train=train, trainable=trainable).get_parameters()["policy"]
    assert any(not torch.equal(value, start[key]) for key, value in expected["policy"].items())


def test_predict_reads_tokens(build: Callable, make_env: Callable) -> None:
    algorithm = small(make_env, build("sd").folder)
    env = make_env(build("sd").folder, steps=2, prompt_tokens=True)
    observation, _ = env.reset(seed=0)
    action, _ = algorithm.predict(observation, deterministic=True)
    assert env.step(action)[4]["step_index"] == 1
    with pytest.raises(ValueError, match=r"lacks \['prompt_tokens'\]"):
        algorithm.predict({key: value for key, value in observation.items() if key != "prompt_tokens"})


def test_an_id_is_made_with_tokens() -> None:
    algorithm = DDPO("DiffusionDenoise-v0", train="text_encoder", num_envs=4, images_per_iteration=4)
    assert algorithm.mdp.prompt_tokens
    assert "prompt_tokens" in algorithm.observation_space.spaces


def test_an_environment_without_tokens_is_refused(build: Callable, make_env: Callable) -> None:
    with pytest.raises(ValueError, match=r"make it with prompt_tokens=True"):
        DDPO(make_env(build("sd").folder), train="text_encoder")
    algorithm = small(make_env, build("sd").folder)
    with pytest.raises(ValueError, match=r"make it with prompt_tokens=True"):
        algorithm.set_env(make_env(build("sd").folder, steps=2))


@pytest.mark.parametrize("model", ["exact-gaussian", "ddpm"])
def test_families_without_a_text_encoder_to_train_are_refused(build: Callable, make_env: Callable, model: str) -> None:
    folder = build(model).folder if model == "ddpm" else model
    prompts = None if model == "ddpm" else ["centre"]
    with pytest.raises(ValueError, match=r"text encoder of .* cannot be trained, only .*SDXL"):
        make_env(folder, prompts=prompts, prompt_tokens=True)
    with pytest.raises(ValueError, match=r"text encoder of .* cannot be trained, only .*SDXL"):
        DenoisingPolicy(load_model(folder), 2, PolicyConfig(train="both", trainable="full"))
