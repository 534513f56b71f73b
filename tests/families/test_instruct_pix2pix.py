"""What InstructPix2Pix has beside Stable Diffusion: the prompt's image in the observation, and guidance by it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from algorithms import DDPO, DenoisingPolicy, PolicyConfig
from algorithms.policy import Rows
from benchmarks.runs.loading_code import loading_code
from benchmarks.runs.memory import _prompt_bytes
from diffusion_gym import load_model
from diffusion_gym.envs.config import build_mdp
from diffusion_gym.prompt_records import Prompt
from tests.builders.families import prompts_of
from tests.builders.pipelines import source_image

STEPS, PROMPTS, SEEDS = 3, ["a cat", "dog"], [5, 6]


@pytest.fixture
def edits(build: Callable[[str], Any]) -> Any:
    """The tiny pipeline."""
    return build("instruct-pix2pix")


def test_conditioning_is_the_pipelines(edits: Any) -> None:
    """The image's latents are not scaled; a picture is read as its file, a larger one scaled, an upright one turned."""
    pipe, model = edits.plain(), edits.model
    mdp = build_mdp(edits.folder, "compressibility", prompts_of(edits.folder, PROMPTS), STEPS, 1, "cpu", "float32")
    given = mdp.conditioning_of(PROMPTS)
    pixels = pipe.image_processor.preprocess([source_image(text) for text in PROMPTS])
    latents = pipe.prepare_image_latents(pixels, 2, 1, torch.float32, "cpu", do_classifier_free_guidance=False)
    embedding = pipe._encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(given["image_latents"], latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(given["prompt_embedding"], embedding, rtol=0, atol=1e-5)
    assert (model.encode_unconditional()["image_latents"] == 0).all()
    assert model.conditioning_shapes == {"prompt_embedding": (16, 32), "image_latents": (4, 8, 8)}

    picture = source_image("dog")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned back for show
    records = [Prompt("x", image=image) for image in (picture, turned, picture.resize((32, 32), Image.Resampling.BOX))]
    as_file, upright, larger = (model.encode_prompt_images([record])["image_latents"] for record in records)
    torch.testing.assert_close(as_file, latents[1:], rtol=0, atol=1e-5)
    assert torch.equal(upright, as_file)
    assert 0 < (larger - as_file).abs().max() < 0.5 * as_file.abs().max()


def test_guidance_by_the_image_is_the_pipelines(edits: Any) -> None:
    """In a third forward; at 1 the two others are enough."""
    pipe, model = edits.plain(), edits.model
    mdp = build_mdp(edits.folder, "compressibility", prompts_of(edits.folder, PROMPTS), STEPS, 1, "cpu", "float32")
    drawn = {}
    for scale in (1.0, 2.0):
        config = PolicyConfig(trainable="full", eta=0.0, guidance_scale=3.0, image_guidance_scale=scale)
        policy = DenoisingPolicy(model, STEPS, config)
        assert policy.forwards_per_row == (2 if scale == 1 else 3)
        x = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(s)) for s in SEEDS])
        for step in range(STEPS):
            x, _ = policy.sample(Rows(x, torch.full((2,), step), mdp.conditioning_of(PROMPTS)), noise=None)
        sources = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        drawn[scale] = edits.family.draw(pipe, PROMPTS, sources, "latent", STEPS, 3.0, image_guidance=scale)
        torch.testing.assert_close(x, drawn[scale], rtol=1e-4, atol=1e-4)
    assert (drawn[1.0] - drawn[2.0]).abs().max() > 1e-2


class NearTheSource:
    """A reward of the user's own: how little was changed of the picture that the metadata names."""

    required_metadata = ("image",)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        sources = [Image.open(each["image"]) if isinstance(each["image"], str) else each["image"] for each in metadata]
        before = torch.stack([torch.from_numpy(np.array(source)).permute(2, 0, 1) for source in sources])
        return -(images.cpu().float() - before).abs().mean((1, 2, 3))


def test_training_with_a_reward_that_compares_with_the_source(edits: Any, make_env: Callable, tmp_path: Path) -> None:
    """Guided by text and image; records that share a text keep their images, and the file alone is enough to go on."""
    images = [Path(edits.folder) / f"{text}.png" for text in ("dog", "cat")]
    env = make_env(edits.folder, STEPS, reward=NearTheSource(), prompts=[{"prompt": "x", "image": i} for i in images])
    scales = {"guidance_scale": 3.0, "image_guidance_scale": 1.5}
    algorithm = DDPO(env, images_per_iteration=4, num_envs=2, chunk_size=3, updates_per_iteration=1, **scales)
    logged: list[dict[str, float]] = []
    update = algorithm.update
    algorithm.update = lambda rollout: logged.append(seen := update(rollout)) or seen  # type: ignore[method-assign]
    algorithm.learn(4 * STEPS)
    assert logged[0]["train/log_ratio_abs_max"] == 0.0
    given = algorithm.mdp.conditioning_of(algorithm.mdp.records)["image_latents"]
    assert not torch.equal(*given)
    assert _prompt_bytes(algorithm.mdp) == 4 * (16 * 32 + 4 * 8 * 8 + 2 * 4 * 8 * 8)
    assert "image_guidance_scale=1.5, and the image to edit" in loading_code(algorithm)
    algorithm.save(tmp_path / "file")
    resumed = DDPO.load(tmp_path / "file", env)
    assert resumed.mdp.records == algorithm.mdp.records
    assert resumed.policy.image_guided

    picture = make_env(edits.folder, reward=NearTheSource(), prompts=[{"prompt": "x", "image": source_image("dog")}])
    latents = torch.zeros(1, *edits.model.latent_shape)
    records = [{"prompt": "x", "image": images[0]}]
    as_file = env.unwrapped.score(latents, records).rewards
    assert torch.equal(picture.unwrapped.score(latents, ["x"]).rewards, as_file)


def test_the_text_encoder_trains_beside_the_image(edits: Any, make_env: Callable, sample: Callable) -> None:
    env = make_env(edits.folder, STEPS, prompt_tokens=True)
    algorithm = DDPO(env, images_per_iteration=2, num_envs=2, updates_per_iteration=1, train="both", guidance_scale=3.0)
    rollout = sample(algorithm, 2)
    assert algorithm.update(rollout)["train/log_ratio_abs_max"] == 0.0
    assert algorithm.update(rollout)["train/log_ratio_abs_max"] > 0.0


def test_images_that_cannot_be_edited(edits: Any, make_env: Callable, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    wide = Image.new("RGB", (32, 16))
    for image, told in (
        (None, r"'x' has no image, which the model .* edits; give a record, as in \{'prompt': 'x', 'image': 'FILE"),
        (wide, r"'x' has 32 x 16 pixels, and .* edits pictures of 16 x 16; crop it to this shape"),
        (tmp_path / "text.png", r"the image of the prompt 'x' cannot be read: cannot identify image file"),
    ):
        with pytest.raises(ValueError, match=told):
            make_env(edits.folder, prompts=[Prompt("x", image=image)])
    with pytest.raises(ValueError, match=r"'dog' has no image"):
        make_env(edits.folder).reset(options={"prompts": [Prompt("dog")]})


def test_guidance_by_images_where_there_is_none(edits: Any, build: Callable) -> None:
    with pytest.raises(ValueError, match=r"image_guidance_scale 1\.5 is for models that edit an image, and "):
        DenoisingPolicy(build("sd").model, STEPS, PolicyConfig(guidance_scale=3.0, image_guidance_scale=1.5))
    with pytest.raises(ValueError, match=r"image_guidance_scale must be at least 1 \(none\), got 0\.5"):
        PolicyConfig(image_guidance_scale=0.5)
    with pytest.warns(UserWarning, match=r"image_guidance_scale 1\.5 does nothing without guidance"):
        policy = DenoisingPolicy(edits.model, STEPS, PolicyConfig(image_guidance_scale=1.5))
    assert policy.forwards_per_row == 1


def test_a_unet_without_room_for_the_image_is_refused(altered: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"takes 4 channels, and the latents of its VAE have 4; expected 8: those"):
        load_model(altered("instruct-pix2pix", unet={}))
