"""Measures the saved reward models and writes their model card: card.json and README.md."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import transformers
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from benchmarks.pretrain.card import share
from benchmarks.pretrain.judge import Judge, Verdict
from benchmarks.pretrain.pipeline import generate
from benchmarks.pretrain.reward_models.aesthetic import SCALE, colourfulness, rank_correlation
from benchmarks.pretrain.reward_models.captioner import answers
from benchmarks.pretrain.reward_models.readme import model_card
from benchmarks.pretrain.vae import reconstruct
from benchmarks.pretrain.world import Pictures
from diffusion_gym.prompts import ACTIVITIES, ANIMALS, animal_activities
from diffusion_gym.rewards.aesthetic import load_head
from diffusion_gym.rewards.models.bertscore import BERTScore
from diffusion_gym.rewards.models.captioner import Captioner
from diffusion_gym.rewards.models.clip import Clip
from diffusion_gym.rewards.vlm_alignment import QUESTION, TEMPLATE

CHUNK = 64
"""Pictures, or texts, at a time."""

RECONSTRUCTED = 500
"""Held-out renders that are measured as the autoencoder gives them back, too."""

KINDS = 1 + len(ACTIVITIES)
"""Captions an animal: without activity and its three activities, in the order of ``answers()``."""

UNREADABLE = -1
"""Stands for the animal and the activity of a description that is no caption of the world."""


@dataclass(frozen=True)
class RewardModels:
    """The models of one folder, loaded as the rewards load them."""

    clip: Clip
    """Image and text tower."""
    head: nn.Sequential
    """Scores of normalised image embeddings."""
    captioner: Captioner
    """Describes pictures."""
    bertscore: BERTScore
    """Recall of reference texts in candidates."""

    @classmethod
    def load(cls, folder: Path) -> "RewardModels":
        """Load a folder of reward models in float32."""
        return cls(
            clip=Clip(str(folder / "clip"), None),
            head=load_head(str(folder / "aesthetic" / "head.safetensors")),
            captioner=Captioner(str(folder / "captioner"), chunk_size=CHUNK),
            bertscore=BERTScore(str(folder / "bert"), chunk_size=CHUNK),
        )


class Seen(NamedTuple):
    """What a model sees in n pictures, as :class:`benchmarks.pretrain.judge.Verdict`."""

    animal: Tensor
    """(n,) int64 index into ``ANIMALS``, or :data:`UNREADABLE`."""
    activity: Tensor
    """(n,) int64, 0 for none, else 1 + index into ``ACTIVITIES``, or :data:`UNREADABLE`."""


class ClipVerdict(NamedTuple):
    """What the CLIP sees in n pictures, with the embeddings it saw it by."""

    animal: Tensor
    """(n,) the best of the 45 bare animals."""
    best: Seen
    """The best of the 180 captions with article."""
    embeddings: Tensor
    """(n, d) normalised image embeddings."""


def look(clip: Clip, images: Tensor) -> ClipVerdict:
    """Return what the CLIP sees in pictures (n, 3, 64, 64), uint8."""
    embeddings = clip.embed_images(images, CHUNK)
    animal, caption = ((embeddings @ clip.embed_texts(texts, CHUNK).T).argmax(dim=1) for texts in (ANIMALS, answers()))
    return ClipVerdict(animal, Seen(caption // KINDS, caption % KINDS), embeddings)


def read(captioner: Captioner, images: Tensor) -> Seen:
    """Return what the captioner says about pictures (n, 3, 64, 64), uint8."""
    places = {text: index for index, text in enumerate(answers())}
    found = torch.tensor([places.get(text, UNREADABLE) for text in captioner(images, QUESTION)])
    readable = found != UNREADABLE
    animal, activity = found // KINDS, found % KINDS
    return Seen(torch.where(readable, animal, UNREADABLE), torch.where(readable, activity, UNREADABLE))


def _compare(seen: Seen | Verdict, animal: Tensor, activity: Tensor) -> dict[str, float]:
    """Return the shares of pictures whose animal, activity and both are as given; all (n,)."""
    animals, activities = seen.animal == animal, seen.activity == activity
    return {"animal": share(animals), "activity": share(activities), "both": share(animals & activities)}


@torch.no_grad()
def score_pictures(
    models: RewardModels, judge: Judge, images: Tensor, animal: Tensor, activity: Tensor
) -> dict[str, Any]:
    """Compare all models on pictures (n, 3, 64, 64), uint8, that should show ``animal`` and ``activity``, (n,)."""
    clip, captioner = look(models.clip, images), read(models.captioner, images)
    score, truth = models.head(clip.embeddings).squeeze(-1), colourfulness(images) / SCALE
    return {
        "pictures": len(images),
        "clip_best_of_45_animals": share(clip.animal == animal),
        "clip": _compare(clip.best, animal, activity),
        "captioner": _compare(captioner, animal, activity),
        "judge": _compare(judge.recognise(images), animal, activity),
        "agreement": _compare(captioner, *clip.best),
        "aesthetic": {
            "rank_correlation": round(rank_correlation(score, truth), 4),
            "mean_error": round(float((score - truth).abs().mean()), 3),
            "mean": round(float(score.mean()), 3),
            "std": round(float(score.std()), 3),
        },
    }


def score_generated(models: RewardModels, pipe: StableDiffusionPipeline, judge: Judge, seeds: int) -> dict[str, Any]:
    """Compare all models on pictures of the embedded model at the default sampler; the seeds are 0, 1, ..."""
    kinds = {"animals": (ANIMALS, seeds), "activities": (animal_activities(), max(1, seeds // 4))}
    results: dict[str, Any] = {}
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for name, (prompts, count) in kinds.items():
        images = torch.cat([generate(pipe, prompts, [seed] * len(prompts)) for seed in range(count)])
        index = torch.arange(len(prompts)).repeat(count)
        acting = name == "activities"
        animal = index // len(ACTIVITIES) if acting else index
        activity = 1 + index % len(ACTIVITIES) if acting else torch.zeros_like(index)
        parts.append((images, animal, activity))
        results[name] = score_pictures(models, judge, *parts[-1])
    both = (torch.cat(column) for column in zip(*parts, strict=True))
    return results | {"all": score_pictures(models, judge, *both)}


def score_bert(bertscore: BERTScore) -> dict[str, Any]:
    """Compare BERTScore's recall of right and wrong captions against the paper's reference for every caption."""
    texts = answers()
    references = [TEMPLATE.replace("{prompt}", text) for text in texts]
    pairs = [(candidate, reference) for reference in references for candidate in texts]
    candidates, right = zip(*pairs, strict=True)
    scores = bertscore(candidates, right).reshape(len(texts), len(texts))
    truth = scores.diag()[:, None]
    animal, activity = torch.arange(len(texts)) // KINDS, torch.arange(len(texts)) % KINDS
    same_animal, same_activity = animal[:, None] == animal, activity[:, None] == activity
    kinds = {
        "wrong_animal": ~same_animal & same_activity,
        "wrong_activity": same_animal & ~same_activity,
        "both_wrong": ~same_animal & ~same_activity,
    }
    return {
        "layer": bertscore.layer,
        "recall_of_true_caption": round(float(truth.mean()), 4),
        "recall_of_any_two_captions": round(float(scores.mean()), 4),
        "kinds": {
            name: {
                "pairs": int(pairs.sum()),
                "true_above": round(float((truth > scores)[pairs].float().mean()), 4),
                "recall": round(float(scores[pairs].mean()), 4),
            }
            for name, pairs in kinds.items()
        },
    }


def time_models(models: RewardModels, images: Tensor) -> dict[str, float]:
    """Time each reward's model on pictures (n, 3, 64, 64), one thread, in milliseconds per picture, best of three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    texts = answers()[: len(images)]
    references = [TEMPLATE.replace("{prompt}", text) for text in texts]

    def best_of(call: Callable[[], object]) -> float:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return round(1000 * min(seconds) / len(images), 2)

    timed = {
        "clip_image": best_of(lambda: models.clip.embed_images(images, CHUNK)),
        "captioner": best_of(lambda: models.captioner(images, QUESTION)),
        "bertscore": best_of(lambda: models.bertscore(texts, references)),
    }
    torch.set_num_threads(threads)
    return timed


def measure(
    models: RewardModels, pipe: StableDiffusionPipeline, judge: Judge, held_out: Pictures, seeds: int
) -> dict[str, Any]:
    """Return everything of the card that is measured on the reloaded, float16-stored weights."""
    animal, activity = torch.from_numpy(held_out.animal), torch.from_numpy(held_out.activity)
    images = torch.from_numpy(held_out.images)
    copies = reconstruct(pipe.vae, held_out.images[:RECONSTRUCTED])
    return {
        "renders": score_pictures(models, judge, images, animal, activity),
        "reconstructions": score_pictures(models, judge, copies, animal[:RECONSTRUCTED], activity[:RECONSTRUCTED]),
        "generated": score_generated(models, pipe, judge, seeds),
        "bert": score_bert(models.bertscore),
        "milliseconds_a_picture_one_thread": time_models(models, images[:64]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "transformers": transformers.__version__,
        },
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write card.json and the README.md made from it into the reward models' folder."""
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")
