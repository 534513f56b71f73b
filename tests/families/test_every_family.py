"""What holds for every family: environment, equality with diffusers, updates, checkpoints, export.

Each test runs on a tiny pipeline of each family's real classes (see conftest).
"""

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from algorithms import DDPO, RWR, DDPOConfig, DenoisingPolicy, DiffusionAlgorithm, PolicyConfig, RWRConfig
from algorithms.checkpoints.published import RECORD
from algorithms.checkpoints.tensors import flatten
from algorithms.policy import Rows
from benchmarks.__main__ import main
from diffusion_gym import LoRAConfig, load_model
from diffusion_gym.envs.config import build_mdp
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models.fingerprint import difference, fingerprint
from tests.builders.families import prompts_of
from tests.builders.pipelines import source_image

STEPS, PROMPTS, SEEDS = 3, ["a cat", "dog"], [5, 6]
#: Scaled by 4: ignoring alpha would shrink the update fourfold.
LORA = LoRAConfig(rank=2, alpha=8.0)


def denoise(
    built: Any, policy: DenoisingPolicy, noisy: bool = False, prompts: Sequence[Any] = PROMPTS, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Step the environment with the policy's means, or with the noise that a pipeline draws after the first latents.

    Returns:
        The final latents (n, c, h, w) and the environment's images (n, 3, H, W), uint8.
    """
    drawn = prompts_of(built.folder, prompts)
    mdp = build_mdp(built.folder, "compressibility", drawn, STEPS, 1, "cpu", "float32", settings)
    env = DenoiseVectorEnv.sharing(mdp, len(SEEDS))
    sources = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    observation, info = env.reset(seed=SEEDS, options={"prompts": PROMPTS})
    x = torch.stack([torch.randn(mdp.model.latent_shape, generator=source) for source in sources])
    assert torch.equal(x, observation["latent"])
    conditioning = {name: observation[name] for name in policy.conditioning}
    for step in range(STEPS):
        noise = torch.stack([torch.randn(x.shape[1:], generator=source) for source in sources]) if noisy else None
        x, _ = policy.sample(Rows(x, torch.full((len(x),), step), conditioning), noise)
        _, _, done, _, info = env.step(x)
    assert done.all()
    return x, info["image"]


def draw(built: Any, pipe: Any, output: str, guidance: float = 1.0, **call: Any) -> Tensor:
    """Draw the same images with plain diffusers."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return built.family.draw(pipe, PROMPTS, generators, output, STEPS, guidance, **call)


def assert_same_images(actual: Tensor, expected: Tensor) -> None:
    """uint8 pictures against pictures in [0, 1]: at most a level apart, where rounding falls on the other side."""
    difference = (actual.float() - (expected * 255).round()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    assert actual.float().std() > 5, "a flat picture would prove nothing"


# ---- the environment


def test_gymnasium_has_nothing_to_say(built: Any, make_env: Callable) -> None:
    built.model  # noqa: B018 - what loading warns of is not the environment's
    env = make_env(built.folder, render_mode="rgb_array").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_an_episode_gives_the_image_and_its_reward(built: Any, make_env: Callable) -> None:
    env = make_env(built.folder)
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"latent", "timestep", *built.model.conditioning_shapes}
    assert "prompt_embedding" in observation
    for step in range(STEPS):
        assert env.observation_space.contains(observation)
        observation, reward, done, _, info = env.step(0.5 * observation["latent"])
        assert done == (step == STEPS - 1)
    assert observation["timestep"] == 0
    picture = torch.from_numpy(info["image"]).permute(2, 0, 1)[None]
    assert tuple(picture.shape[1:]) == built.model.image_shape
    assert torch.equal(built.model.decode(torch.from_numpy(observation["latent"])[None]), picture)
    assert reward == env.unwrapped.score(torch.from_numpy(observation["latent"])[None], ["cat"]).rewards[0] < 0


def test_model_is_one_object_copied_or_pickled(built: Any) -> None:
    model = built.model
    assert copy.deepcopy(model) is model
    assert pickle.loads(pickle.dumps(model)) is model


def test_tiles_change_nothing_on_small_images(built: Any) -> None:
    model = load_model(built.folder, vae_tiling=True)
    assert model is not built.model
    assert pickle.loads(pickle.dumps(model)) is model
    assert getattr(getattr(model.pipe, "vae", None), "use_tiling", True)
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.decode(latents), built.model.decode(latents))


# ---- against diffusers' own pipeline


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_images_are_the_pipelines(built_or_variant: Any, noisy: bool, guided: bool) -> None:
    """Noise off for every family; noise on, drawn as the pipeline draws it, where the pipeline has eta."""
    built = built_or_variant
    if (noisy and built.family.eta is None) or (guided and built.family.guidance == 1.0):
        pytest.skip("the pipeline has no such setting")
    guidance, eta = built.family.guidance if guided else 1.0, built.family.eta if noisy else 0.0
    policy = DenoisingPolicy(built.model, STEPS, PolicyConfig(trainable="full", eta=eta, guidance_scale=guidance))
    latents, images = denoise(built, policy, noisy)
    call = {"guidance": guidance, **({} if built.family.eta is None else {"eta": eta})}
    pipe = built.plain()
    # float32 rounding over the steps; at the noisiest the prediction of x_0 multiplies it by 1 / sqrt(a) = 15.
    torch.testing.assert_close(latents, draw(built, pipe, "latent", **call), rtol=1e-4, atol=1e-4)
    assert_same_images(images, draw(built, pipe, "pt", **call))


@pytest.mark.parametrize(
    "name",
    [
        *("sd", "sdxl", "sd3-dynamic-shift", "flux", "ddpm"),
        *("pixart-sigma", "instruct-pix2pix", "qwen-image", "z-image", "flux-2-klein"),
    ],
)
def test_images_of_another_size_are_the_pipelines(build: Callable, name: str) -> None:
    """Not square, and only the height given; SDXL's size ids, Flux's image ids and shifts by resolution follow."""
    built = build(name)
    guidance = built.family.guidance
    if built.family.guidance == 1.0:
        with pytest.raises(ValueError, match=r"draws images of 16 x 16 pixels alone, .*; leave out height, got 24"):
            load_model(built.folder, height=24)
        return
    model = load_model(built.folder, height=24)
    channels, h, w = built.model.latent_shape
    assert (model.image_shape, model.latent_shape) == ((3, 24, 16), (channels, h * 3 // 2, w))
    assert pickle.loads(pickle.dumps(model)) is model
    assert "latent_shape" in str(difference(fingerprint(built.model), fingerprint(model)))
    policy = DenoisingPolicy(model, STEPS, PolicyConfig(trainable="full", eta=0.0, guidance_scale=guidance))
    prompts: Sequence[Any] = PROMPTS
    if model.image_conditioning:
        prompts = [{"prompt": text, "image": source_image(text).resize((16, 24))} for text in PROMPTS]
    latents, images = denoise(built, policy, prompts=prompts, height=24)
    call = {"guidance": guidance, "size": (24, 16)}
    pipe = built.plain()
    torch.testing.assert_close(latents, draw(built, pipe, "latent", **call), rtol=1e-4, atol=1e-4)
    assert_same_images(images, draw(built, pipe, "pt", **call))
    with pytest.raises(ValueError, match=r"width must be a multiple of [48] pixels for .*, got 18; (16|20) would do"):
        load_model(built.folder, width=18)


@pytest.mark.parametrize(
    ("name", "by_prompt"),
    [
        *(("sd", True), ("sdxl", True), ("sdxl", False), ("sd3", False), ("flux-schnell", True)),
        *(("pixart-sigma", True), ("instruct-pix2pix", True), ("qwen-image", True), ("z-image", False)),
    ],
)
def test_images_with_negative_prompts_are_the_pipelines(build: Callable, name: str, by_prompt: bool) -> None:
    built, negative = build(name), ["dog", "a bike"] if by_prompt else ["dog"] * 2
    prompts = [{"prompt": p, "negative_prompt": n} for p, n in zip(PROMPTS, negative, strict=True)]
    config = PolicyConfig(trainable="full", eta=0.0, guidance_scale=built.family.guidance)
    if not by_prompt:
        config = dataclasses.replace(config, negative_prompt=negative[0])
    policy = DenoisingPolicy(built.model, STEPS, config, negative_prompts=by_prompt)
    latents, _ = denoise(built, policy, prompts=prompts if by_prompt else PROMPTS)
    expected = draw(built, built.plain(), "latent", guidance=built.family.guidance, negative=negative)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_rescaled_guidance_is_the_pipelines(build: Callable, name: str) -> None:
    built, config = build(name), PolicyConfig(trainable="full", eta=0.0, guidance_scale=5.0, guidance_rescale=0.7)
    latents, _ = denoise(built, DenoisingPolicy(built.model, STEPS, config))
    plain, rescaled = (draw(built, built.plain(), "latent", guidance=5.0, rescale=share) for share in (0.0, 0.7))
    assert (plain - rescaled).abs().max() > 1e-2
    torch.testing.assert_close(latents, rescaled, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"has no guidance_rescale, .*; leave it out, got 0\.7"):
        DenoisingPolicy(build("sd3").model, STEPS, config)


def test_prompts_and_guidance_matter(built: Any) -> None:
    """The comparison above would prove nothing on a network that ignores its prompt."""
    if built.family.guidance == 1.0:
        pytest.skip("the family reads no prompt")
    pipe = built.plain()
    latents = draw(built, pipe, "latent")
    swapped = built.family.draw(
        pipe, PROMPTS[::-1], [torch.Generator().manual_seed(seed) for seed in SEEDS], "latent", STEPS, 1.0
    )
    assert (latents - swapped).abs().max() > 1e-2
    assert (latents - draw(built, pipe, "latent", guidance=built.family.guidance)).abs().max() > 1e-2


def test_guidance_of_at_most_1_is_none_as_in_diffusers(build: Callable) -> None:
    """And costs no second forward; where a distilled model takes it as an input, 0 is a value like any other."""
    for name in ("sd", "sd3"):
        built = build(name)
        policies = [DenoisingPolicy(built.model, STEPS, PolicyConfig(guidance_scale=g, eta=0.0)) for g in (0.0, 1.0)]
        with pytest.warns(UserWarning, match=r"guidance_scale 0\.5 means no guidance"):
            policies.append(DenoisingPolicy(built.model, STEPS, PolicyConfig(guidance_scale=0.5, eta=0.0)))
        assert {policy.forwards_per_row for policy in policies} == {1}
        latents = [denoise(built, policy)[0] for policy in policies]
        assert torch.equal(latents[0], latents[1])
        assert torch.equal(latents[2], latents[1])
        theirs = draw(built, built.plain(), "latent", guidance=0.0)
        torch.testing.assert_close(latents[0], theirs, rtol=1e-4, atol=1e-4)
    distilled = build("flux")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policies = [
            DenoisingPolicy(distilled.model, STEPS, PolicyConfig(guidance_scale=g, eta=0.0)) for g in (0.0, 0.5)
        ]
    assert (denoise(distilled, policies[0])[0] - denoise(distilled, policies[1])[0]).abs().max() > 1e-4


# ---- training


def ddpo(built: Any, make_env: Callable, dtype: str = "float32", **changes: Any) -> DDPO:
    """DDPO-IS on LoRA, with the family's guidance; 2 prompts, 4 images an iteration in rounds of 2."""
    policy = {"trainable": "lora", "lora": LORA, "guidance_scale": built.family.guidance, "chunk_size": 3}
    config = DDPOConfig(
        images_per_iteration=4, num_envs=2, images_per_prompt=2, learning_rate=0.02, updates_per_iteration=2,
        policy=PolicyConfig(**policy),
    )  # fmt: skip
    return DDPO(make_env(built.folder, STEPS, dtype=dtype), config, **changes)


def rwr(built: Any, make_env: Callable) -> RWR:
    """RWR on full weights."""
    config = RWRConfig(
        images_per_iteration=4, num_envs=2, images_per_prompt=2, learning_rate=0.005, updates_per_iteration=2,
        batch_size=5, policy=PolicyConfig(trainable="full", guidance_scale=built.family.guidance, chunk_size=4),
    )  # fmt: skip
    return RWR(make_env(built.folder, STEPS), config)


def learn(algorithm: DiffusionAlgorithm[Any], iterations: int = 1) -> None:
    """Train on."""
    steps = iterations * algorithm.config.images_per_iteration * STEPS
    algorithm.learn(steps, reset_num_timesteps=algorithm.iteration == 0)


@pytest.mark.ratio
@pytest.mark.parametrize(("trainable", "dtype"), [("lora", "float32"), ("full", "float32"), ("lora", "bfloat16")])
def test_ratio_is_one_before_the_first_update(
    built: Any, make_env: Callable, largest_log_ratios: Callable, sample: Callable, trainable: str, dtype: str
) -> None:
    """On the training path itself, guidance on, the last chunk smaller; and the update changes the ratio."""
    algorithm = ddpo(built, make_env, dtype, trainable=trainable, updates_per_iteration=1)
    threads = 2 if trainable == "full" else 1
    assert set(largest_log_ratios(algorithm, ((16, threads), (3, threads))).values()) == {0.0}
    rollout = sample(algorithm, 4)
    algorithm.update(rollout)
    assert algorithm.update(rollout)["train/log_ratio_abs_max"] > 0.0


@pytest.mark.parametrize("make", [ddpo, rwr])
def test_update_resume_and_export(built: Any, make_env: Callable, make: Callable, tmp_path: Path) -> None:
    """Resuming equals never stopping, bit for bit; what is exported draws the same images in plain diffusers.

    And the model that other policies start from is left alone: nothing is put into a cached pipeline in place.
    """
    shared = getattr(built.model.pipe, built.model.denoiser_class.component)
    pretrained = {name: value.clone() for name, value in shared.state_dict().items()}
    algorithm = make(built, make_env)
    before = {name: value.detach().clone() for name, value in algorithm.policy.trainable_parameters().items()}
    learn(algorithm)
    moved = [name for name, value in algorithm.policy.trainable_parameters().items() if not value.equal(before[name])]
    assert len(moved) > 0.5 * len(before)
    algorithm.save(tmp_path / "checkpoint")
    learn(algorithm)
    resumed = type(algorithm).load(tmp_path / "checkpoint", make_env(built.folder, STEPS))
    learn(resumed)
    unbroken, continued = flatten(algorithm.get_parameters()), flatten(resumed.get_parameters())
    assert set(unbroken) == set(continued)
    assert [name for name, value in unbroken.items() if not torch.equal(value, continued[name])] == []
    assert all(value.isfinite().all() for value in unbroken.values())

    algorithm.export(tmp_path / "tuned")
    policy = DenoisingPolicy(built.model, STEPS, PolicyConfig(trainable="full", eta=0.0))
    untuned, _ = denoise(built, policy)
    policy.denoiser = algorithm.policy.denoiser
    latents, images = denoise(built, policy)
    if algorithm.policy.model.exports_lora_file(algorithm.policy.lora):
        assert built.family.lora_file
        written = [file.name for file in (tmp_path / "tuned").iterdir() if file.name != RECORD]
        assert written == ["pytorch_lora_weights.safetensors"]
        pipe = built.plain()
        pipe.load_lora_weights(tmp_path / "tuned")
    else:
        assert algorithm.policy.lora is None or not built.family.lora_file
        pipe = built.plain(tmp_path / "tuned")
    scale = (latents - untuned).abs().max()
    assert scale > 0.02, "the tuning did change something"
    assert (draw(built, pipe, "latent") - latents).abs().max() < 1e-2 * scale
    assert_same_images(images, draw(built, pipe, "pt"))
    assert set(shared.state_dict()) == set(pretrained)
    assert all(torch.equal(value, pretrained[name]) for name, value in shared.state_dict().items())


def test_one_command_for_every_family(built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``train`` with a folder's name, then ``sample`` with base and tuned pictures side by side."""
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    sizes = ["--images-per-iteration", "4", "--num-envs", "2", "--reward-queries", "4", "--num-inference-steps", "3"]
    guidance = ["--policy.guidance-scale", str(built.family.guidance), "--evaluation.images", "2", "--threads", "1"]
    edits = Path(built.folder) / "edits.jsonl"
    trained, drawn = (str(edits), str(edits)) if edits.is_file() else ("ten-animals", "cat")
    given = ["train", "ddpo-is", "--model", built.folder, "--folder", str(run), "--prompts", trained]
    assert main([*given, *sizes, *guidance]) == 0
    assert main(["sample", "--run", str(run), "--prompts", drawn, "--images", "1", "--output", str(picture)]) == 0
    assert str(run) in capsys.readouterr().out
    lora_file = run / "pytorch_lora_weights.safetensors"
    assert lora_file.is_file() == built.family.lora_file
    assert (run / "pipeline" / "model_index.json").is_file() == (not built.family.lora_file)
    with Image.open(picture) as image:
        assert image.width > 2 * built.model.image_shape[2]


def test_starting_from_a_lora(built: Any, tmp_path: Path) -> None:
    """What was exported predicts the same when it is merged, and when it is trained on, which exports it again."""
    if not built.family.lora_file:
        with pytest.raises(ValueError, match=r"diffusers loads no LoRA into .*; leave out start_from, got 'x/y'"):
            load_model(built.folder, start_from="x/y")
        return
    written = tmp_path / "lora"
    tuned = DenoisingPolicy(built.model, STEPS, PolicyConfig(lora=LORA))
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in tuned.trainable_parameters().values():
            value.add_(0.2 * torch.randn(value.shape, generator=source))
    built.model.export(tuned.denoiser, written, LORA)
    (file,) = written.glob("*.safetensors")
    merged = load_model(built.folder, start_from=str(written))
    further = load_model(built.folder, start_from=str(file), start_from_mode="train")
    rows = tuned.blank_rows(1)
    with torch.no_grad():
        expected = tuned.distribution(rows).mean
        assert (
            expected - DenoisingPolicy(built.model, STEPS, PolicyConfig()).distribution(rows).mean
        ).abs().max() > 1e-3
        policies = [DenoisingPolicy(model, STEPS, PolicyConfig()) for model in (merged, further)]
        for policy, rounding in zip(policies, (1e-4, 0.0), strict=True):
            torch.testing.assert_close(policy.distribution(rows).mean, expected, rtol=rounding, atol=rounding)
    assert [policy.config.lora for policy in policies] == [LoRAConfig(), LORA]
    further.export(policies[1].denoiser, tmp_path / "again", LORA)
    again = load_file(next((tmp_path / "again").glob("*.safetensors")))
    assert all(torch.equal(value, again.pop(name)) for name, value in load_file(file).items())
    assert not again
    present = fingerprint(built.model)
    assert "weights are others" in str(difference(present, fingerprint(merged)))
    assert "start_from) is another" in str(difference(present, fingerprint(further)))


@pytest.mark.parametrize("group", ["attention", "all"])
def test_groups_of_layers_are_the_networks(built: Any, group: str) -> None:
    """Adapters start as no change at all, in every layer whose name a group lists; "all" has more than "attention"."""
    model = built.model
    denoiser = model.build_denoiser(LoRAConfig(targets=(group,)))
    adapted = [name for name, value in denoiser.named_parameters() if value.requires_grad]
    assert adapted
    assert all("lora_" in name for name in adapted)
    frozen = {value.data_ptr() for value in denoiser.parameters() if not value.requires_grad}
    pretrained = getattr(model.pipe, model.denoiser_class.component)
    assert frozen == {value.data_ptr() for value in pretrained.parameters()}, "frozen weights lie in memory once"
    if group == "attention":
        assert all(".to_" in name or "_proj" in name for name in adapted)
    else:
        attention = model.build_denoiser(LoRAConfig(targets=("attention",)))
        assert len(adapted) > sum(value.requires_grad for value in attention.parameters())
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = model.encode_prompts(PROMPTS)
    times = model.schedule(STEPS).timesteps[:2]
    with torch.no_grad():
        expected = model.build_denoiser()(latents, times, conditioning)
        torch.testing.assert_close(denoiser(latents, times, conditioning), expected, rtol=0, atol=0)


def test_encode_images_undoes_decode_as_far_as_the_vae_does(built: Any) -> None:
    """Scaling and shift belong to both directions: encoding pixels is the VAE's own mode, put into latent units."""
    model, pipe = built.model, built.plain()
    source = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, *model.image_shape), dtype=torch.uint8, generator=source)
    latents = model.encode_images(images)
    assert latents.shape == (2, *model.latent_shape)
    assert latents.dtype == torch.float32
    pixels = torch.from_numpy(images.numpy().astype(np.float32)) / 127.5 - 1
    if getattr(pipe, "vae", None) is None:
        torch.testing.assert_close(latents, pixels)
        assert torch.equal(model.decode(latents), images)
        return
    with torch.no_grad():
        expected = built.family.encode(pipe, pixels)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
