"""The stages of the reward models in order; each keeps its result in the work folder and is skipped when there."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from transformers import BertForMaskedLM, LlavaForConditionalGeneration

from benchmarks.pretrain.card import folder_megabytes
from benchmarks.pretrain.config import PretrainConfig
from benchmarks.pretrain.judge import load_judge
from benchmarks.pretrain.pipeline import load_pipeline, replaced_folder
from benchmarks.pretrain.reward_models.aesthetic import SCALE, AestheticHead, colourfulness, save_head, train_head
from benchmarks.pretrain.reward_models.bert import build_bert, build_bert_tokenizer, save_bert, train_bert
from benchmarks.pretrain.reward_models.captioner import (
    TowerClassifier,
    build_captioner,
    build_captioner_tokenizer,
    save_captioner,
    train_captioner,
    train_tower,
)
from benchmarks.pretrain.reward_models.card import RewardModels, measure, write_card
from benchmarks.pretrain.reward_models.clip import ProbedCLIP, embed_images, save_clip, train_clip
from benchmarks.pretrain.reward_models.views import Views
from benchmarks.pretrain.training import describe_stage, run_stage
from benchmarks.pretrain.vae import reconstruct, to_model_range
from benchmarks.pretrain.world import Pictures
from benchmarks.provenance import processor


def run_reward_stages(config: PretrainConfig, pictures: Pictures, held_out: Pictures) -> None:
    """Train what is not trained yet, then write the folder of reward models and its card.

    Args:
        config: all settings; the pipeline in ``config.output`` makes the copies and the generated pictures.
        pictures: the training pictures.
        held_out: pictures of another seed, on which the models are measured.

    Raises:
        ValueError: there is no pipeline in ``config.output``.
    """
    if not (config.output / "model_index.json").is_file():
        raise ValueError(f"no pipeline in {str(config.output)!r}; make it first, with --only generator.")
    pipe = load_pipeline(config.output)
    views = Views(pictures, _copies(config, pipe, pictures))
    model = _clip(config, views)
    head = _aesthetic(config, views, model.clip)
    captioner = _captioner(config, views)
    bert = _bert(config)
    with replaced_folder(config.rewards.output) as folder:
        save_clip(model.clip, folder / "clip")
        save_head(head, folder / "aesthetic")
        save_captioner(captioner, folder / "captioner")
        save_bert(bert, folder / "bert")
        models, judge = RewardModels.load(folder), load_judge(config.judge_output)
        trained = {"clip": model.clip, "aesthetic": head, "captioner": captioner, "bert": bert.bert}
        card = {
            "parameters": {name: sum(part.numel() for part in whole.parameters()) for name, whole in trained.items()},
            **measure(models, pipe, judge, held_out, config.seeds),
            **_provenance(config),
            "megabytes": folder_megabytes(folder),
        }
        write_card(folder, card)


def _copies(config: PretrainConfig, pipe: StableDiffusionPipeline, pictures: Pictures) -> NDArray[np.uint8]:
    """Encode and decode the first training pictures, or read the result back."""
    file = config.work / "copies.npz"
    if not file.is_file():
        partial = config.work / "copies.partial.npz"
        np.savez(partial, images=reconstruct(pipe.vae, pictures.images[: config.rewards.copies]).numpy())
        partial.replace(file)
    with np.load(file) as arrays:
        images: NDArray[np.uint8] = arrays["images"]
    return images


def _clip(config: PretrainConfig, views: Views) -> ProbedCLIP:
    """Train the CLIP."""
    torch.manual_seed(config.seed + 3)
    model = ProbedCLIP()

    def train(checkpoint: Path) -> float:
        return train_clip(model, views, config.rewards.clip, config.seed, checkpoint)

    run_stage(config.work, "clip", model, train)
    return model


def _aesthetic(config: PretrainConfig, views: Views, clip: open_clip.CLIP) -> AestheticHead:
    """Fit the aesthetic head to the CLIP's embeddings of the last renders and the first copies, as they are."""
    torch.manual_seed(config.seed + 4)
    head = AestheticHead(clip.visual.output_dim)

    def train(checkpoint: Path) -> float:
        count = config.rewards.rated
        images = np.concatenate([views.pictures.images[-count:], views.copies[:count]])
        target = colourfulness(torch.from_numpy(images)) / SCALE
        embeddings = embed_images(clip, to_model_range(images))
        return train_head(head, embeddings, target, config.rewards.aesthetic, config.seed, checkpoint)

    run_stage(config.work, "aesthetic", head, train)
    return head


def _captioner(config: PretrainConfig, views: Views) -> LlavaForConditionalGeneration:
    """Train the vision tower as a classifier, then the whole captioner."""
    torch.manual_seed(config.seed + 5)
    tokenizer = build_captioner_tokenizer()
    model = build_captioner(tokenizer)
    classifier = TowerClassifier(model.model.vision_tower)
    # Another stream of batches than the CLIP's, so that the two err apart: one measures what the other rewards.
    seed, rewards = config.seed + 1, config.rewards

    def train_eyes(checkpoint: Path) -> float:
        return train_tower(classifier, views, rewards.tower, seed, checkpoint)

    def train_all(checkpoint: Path) -> float:
        return train_captioner(model, tokenizer, views, rewards.captioner, seed, checkpoint)

    run_stage(config.work, "tower", classifier, train_eyes)
    run_stage(config.work, "captioner", model, train_all)
    return model


def _bert(config: PretrainConfig) -> BertForMaskedLM:
    """Train the encoder for BERTScore."""
    torch.manual_seed(config.seed + 6)
    tokenizer = build_bert_tokenizer()
    model = build_bert(tokenizer)

    def train(checkpoint: Path) -> float:
        return train_bert(model, tokenizer, config.rewards.bert, config.seed, checkpoint)

    run_stage(config.work, "bert", model, train)
    return model


def _provenance(config: PretrainConfig) -> dict[str, Any]:
    """Return how the models were made: seed, machine, and each stage's steps, batch and minutes."""
    schedules = ("clip", "aesthetic", "tower", "captioner", "bert")
    return {
        "seed": config.seed,
        "pictures": config.pictures,
        "copies": config.rewards.copies,
        "rated": config.rewards.rated,
        "hardware": f"{config.threads} thread{'s' if config.threads > 1 else ''} of {processor()}",
        "training": {name: describe_stage(config.work, name, getattr(config.rewards, name)) for name in schedules},
    }
