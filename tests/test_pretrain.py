"""Pre-training of the embedded model: the world, the tokenizer, and every stage for a few steps."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_gym_torchvision import repair_torchvision

repair_torchvision()

from benchmarks.pretrain import PretrainConfig, pretrain  # noqa: E402
from benchmarks.pretrain.training import Schedule, optimise  # noqa: E402
from benchmarks.pretrain.world import ANIMAL_GLYPHS, Pictures, caption_index, captions, render_many  # noqa: E402
from diffusion_gym.prompts import ACTIVITIES, ANIMALS, animal_activities  # noqa: E402

FONT = PretrainConfig().font
PARTS = ("clip", "aesthetic", "captioner", "bert")
needs_font = pytest.mark.skipif(not FONT.is_file(), reason="needs the Noto Color Emoji font (fonts-noto-color-emoji)")


def test_captions_are_the_papers_prompts() -> None:
    """Every animal and each of the 135 activity prompts is a caption, and the index finds them."""
    texts = captions()
    assert len(ANIMAL_GLYPHS) == len(ANIMALS)
    assert len(set(texts)) == len(texts) == 1 + 2 * 45 + 135
    assert texts[caption_index(ANIMALS.index("ant"), 0, article=True)] == "an ant"
    assert texts[caption_index(ANIMALS.index("dog"), 0, article=False)] == "dog"
    found = [texts[caption_index(animal, 1 + act, False)] for animal in range(45) for act in range(len(ACTIVITIES))]
    assert found == list(animal_activities())


@needs_font
def test_rendering_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """The same seed gives the same pictures, another seed others; a file gives back what was saved."""
    first, again, other = (render_many(12, seed, FONT) for seed in (3, 3, 4))
    assert first.images.shape == (12, 3, 64, 64)
    assert first.images.dtype == np.uint8
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    first.save(tmp_path / "pictures.npz")
    loaded = Pictures.load(tmp_path / "pictures.npz")
    assert np.array_equal(loaded.images, first.images)
    assert np.array_equal(loaded.caption, first.caption)


def test_missing_font_is_named(tmp_path: Path) -> None:
    """A missing font is reported with the package that holds it."""
    with pytest.raises(ValueError, match="fonts-noto-color-emoji"):
        render_many(1, 0, tmp_path / "absent.ttf")


def test_tokenizer_spells_the_unknown() -> None:
    """The captions' words are single tokens, any other text is spelled, and a caption always fits."""
    from benchmarks.pretrain.text import MAX_LENGTH, build_tokenizer, tokenize

    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("a cat riding a bike") == ["a</w>", "cat</w>", "riding</w>", "a</w>", "bike</w>"]
    assert tokenizer.tokenize("xyz") == ["x", "y", "z</w>"]
    ids = tokenize(tokenizer, captions())
    assert ids.shape == (len(captions()), MAX_LENGTH)
    assert len({tuple(row) for row in ids.tolist()}) == len(captions())


def test_interrupted_training_resumes_to_the_bit(tmp_path: Path) -> None:
    """Stopping after a checkpoint and resuming ends at the weights of an uninterrupted run."""
    schedule = Schedule(steps=6, batch=4, lr=0.1, ema_decay=0.9)

    def train(checkpoint: Path, stop_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def loss(step: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            return model(rows).square().mean()

        optimise(model, loss, schedule, checkpoint, save_every_seconds=0.0)
        return model.weight.detach().clone()

    whole = train(tmp_path / "whole.pt", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves.pt", 3)
    assert torch.equal(train(tmp_path / "halves.pt", None), whole)


@needs_font
@pytest.mark.slow
def test_every_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of everything leave a folder that diffusers loads, a card, a grid, a judge and reward models."""
    from diffusers import StableDiffusionPipeline

    from benchmarks.pretrain import card
    from benchmarks.pretrain.judge import load_judge
    from benchmarks.pretrain.pipeline import generate
    from benchmarks.pretrain.reward_models import card as card_of_rewards

    def drawn_in_one_step(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], *sampler: Any) -> torch.Tensor:
        return generate(pipe, prompts, seeds, 1)

    for module in (card, card_of_rewards):
        monkeypatch.setattr(module, "generate", drawn_in_one_step)
    monkeypatch.setattr(card, "time_parts", functools.partial(card.time_parts, rows=2))
    config = PretrainConfig.quick(tmp_path)
    pretrain(config)
    pipe = StableDiffusionPipeline.from_pretrained(config.output)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    image = pipe(["cat"], num_inference_steps=2, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    animal, activity = load_judge(config.judge_output).recognise(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert animal.shape == activity.shape == (2,)
    card = json.loads((config.output / "card.json").read_text(encoding="utf-8"))
    assert card["animals"][0]["images"] == 45
    assert (config.output / "grid.png").is_file()
    assert (config.output / "training.json").is_file()
    assert "Licence" in (config.output / "README.md").read_text(encoding="utf-8")
    rewards = config.rewards.output
    assert {file.name for file in rewards.iterdir()} == {*PARTS, "card.json", "README.md"}
    assert "stands in for LAION's" in (rewards / "README.md").read_text(encoding="utf-8")
    files = [*config.output.rglob("*.json"), *rewards.rglob("*.json")]
    assert str(tmp_path) not in "".join(file.read_text(encoding="utf-8") for file in files)
    # Stages that are there are taken over, unless they were made with other settings.
    pretrain(dataclasses.replace(config, only="reward-models"))
    other = dataclasses.replace(config.rewards, bert=Schedule(steps=4, batch=16, lr=1e-3))
    with pytest.raises(ValueError, match="another bert"):
        pretrain(dataclasses.replace(config, rewards=other))


def test_reward_models_need_the_pipeline(tmp_path: Path) -> None:
    """The reward models see what the pipeline draws; without it the error says how to make it."""
    from benchmarks.pretrain.reward_models.stages import run_reward_stages

    nothing = Pictures(np.zeros((0, 3, 64, 64), np.uint8), *(np.zeros(0, np.int64) for _ in range(3)))
    with pytest.raises(ValueError, match="--only generator"):
        run_reward_stages(PretrainConfig.quick(tmp_path), nothing, nothing)
