"""Measures of images beside the training reward: do they still show the prompt, do they still differ?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.runs.gold_judge import GoldJudge
from diffusion_gym import _lazy
from diffusion_gym.choices import ASSETS, DEFAULT_MODEL, EMOJI_WORLD
from diffusion_gym.prompts import ANIMALS, Prompt
from diffusion_gym.rewards import check_reward, resolve_reward
from diffusion_gym.rewards.geneval.request import TAGS

if TYPE_CHECKING:
    from torch import Tensor

    from algorithms import DiffusionAlgorithm
    from diffusion_gym.models import DiffusionModel
    from diffusion_gym.rewards import RewardFunction

#: ``(images, prompts)`` or, as a reward, ``(images, prompts, metadata)`` -> a number.
Metric: TypeAlias = "Callable[..., float]"
#: A measure of the policy itself instead of its images.
PolicyMetric: TypeAlias = "Callable[[DiffusionAlgorithm], float]"
#: The shape of the pictures that the embedded models' judges know.
JUDGED_SHAPE = (3, 64, 64)
#: The gold judge's metrics: of all kinds of prompts together, and of one kind each.
JUDGES = {judge.name: judge for judge in map(GoldJudge, (None, *TAGS))}
#: Logged beside the metrics if it is measured: the exact KL to the starting model, nats per image.
KL_TO_START = "kl_to_start"
#: Names of :data:`benchmarks.runs.exact_targets.DISTANCES`; ``?beta=NUMBER`` after them says which target (default 1).
DISTANCES = (
    "exact-kl-from-start",
    "exact-excess-kl",
    "exact-target-kl",
    "exact-mean-error",
    "exact-mode-weight-error",
)
#: Metrics that compare images of one prompt: NaN if an evaluation has no prompt twice.
OF_PAIRS = ("diversity", "clip_diversity")
#: Statistics of pixels, which change with noise and texture too: neither more nor less of them is better.
OF_PIXELS = ("diversity", "sharpness", "colourfulness", "flat_area")


def recognised(images: Tensor, prompts: Sequence[str]) -> float:
    """Return the share of images in which the embedded world's judge sees the prompted animal; see `check_world`."""
    animals, _ = _judge().recognise(images)
    hits = [ANIMALS[int(seen)] == _animal(prompt) for prompt, seen in zip(prompts, animals, strict=True)]
    return sum(hits) / len(hits)


def clip_diversity(images: Tensor, prompts: Sequence[str]) -> float:
    """Return ``1 - cosine`` of the embedded CLIP's embeddings of two images of one prompt, averaged.

    0 is full collapse. Unlike a distance of pixels it hardly counts position and background.
    """
    from algorithms.diversity import embedding_diversity

    return embedding_diversity(_clip().embed_images(images, chunk_size=16).cpu(), prompts)


def sharpness(images: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean absolute Laplacian of the grey pictures, in levels of 255; blur lowers it."""
    grey = images.double().mean(1)
    inner, rows, columns = grey[:, 1:-1, 1:-1], grey[:, :, 1:-1], grey[:, 1:-1]
    neighbours = rows[:, 2:] + rows[:, :-2] + columns[:, :, 2:] + columns[:, :, :-2]
    return float((4 * inner - neighbours).abs().mean())


def colourfulness(images: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean colourfulness of the pictures, in levels of 255; 0 for grey pictures.

    Hasler and Suesstrunk 2003: with the opponent channels red - green and (red + green) / 2 - blue, the root of the sum
    of their variances plus 0.3 times the length of their mean.
    """
    red, green, blue = images.double().flatten(2).unbind(1)
    opponents = (red - green, (red + green) / 2 - blue)  # (n, pixels) each
    spread = sum(one.var(-1, correction=0) for one in opponents)
    mean = sum(one.mean(-1).square() for one in opponents)
    return float((spread.sqrt() + 0.3 * mean.sqrt()).mean())  # type: ignore[union-attr]


def flat_area(images: Tensor, prompts: Sequence[str]) -> float:
    """Return the share of pixels whose right and lower neighbours differ by at most 2 of 255 levels of grey."""
    grey = images.double().mean(1)
    across = (grey[:, :-1, 1:] - grey[:, :-1, :-1]).abs()
    down = (grey[:, 1:, :-1] - grey[:, :-1, :-1]).abs()
    return float(((across <= 2) & (down <= 2)).double().mean())


#: Name -> metric over one evaluation's images.
METRICS: dict[str, Metric] = _lazy.Registry(
    {
        "diversity": "algorithms.diversity:diversity",
        "clip_diversity": clip_diversity,
        "recognised": recognised,
        "sharpness": sharpness,
        "colourfulness": colourfulness,
        "flat_area": flat_area,
        **JUDGES,
    }
)


def check_worlds(metrics: Collection[str], model: DiffusionModel, prompts: Sequence[str]) -> None:
    """Raise ValueError if one of the metrics judges the pictures of an embedded model, and ``model`` draws others."""
    if "recognised" in metrics:
        check_world(model, prompts)
    for name in metrics:
        if name in JUDGES:
            _check_model(name, EMOJI_WORLD, model)


def check_world(model: DiffusionModel, prompts: Sequence[str]) -> None:
    """Raise ValueError for a model that draws no emoji animals, or prompts that ask for none."""
    _check_model("recognised", DEFAULT_MODEL, model)
    other = next((prompt for prompt in prompts if _animal(prompt) is None), None)
    if other is not None:
        raise ValueError(
            f"the metric 'recognised' needs an animal in every prompt, got {other!r}; it knows those of the prompt set "
            "'animals'."
        )


def _check_model(metric: str, world: str, model: DiffusionModel) -> None:
    """Raise ValueError for a model without the vocabulary and the picture size of an embedded one, its ``world``.

    Tuned and pretrained ones have them too.
    """
    vocabulary = json.loads((ASSETS / world / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    tokenizer = getattr(getattr(model, "pipe", None), "tokenizer", None)
    known = {} if tokenizer is None else tokenizer.get_vocab()
    if not vocabulary.items() <= known.items() or tuple(model.image_shape) != JUDGED_SHAPE:
        raise ValueError(
            f"the metric {metric!r} judges pictures of {world} and of models tuned from it alone, got "
            f"{model.name!r}; take a reward as a metric instead, for example clip_score with its own weights."
        )


def _animal(prompt: str) -> str | None:
    return next((word for word in prompt.split() if word in ANIMALS), None)


@lru_cache(maxsize=1)
def _judge() -> Any:
    from benchmarks.pretrain.judge import load_judge

    return load_judge()


@lru_cache(maxsize=1)
def _clip() -> Any:
    from diffusion_gym.rewards.models.clip import load_clip
    from diffusion_gym.rewards.models.weights import embedded

    return load_clip(embedded("clip"), None)


def check_metric(name: str) -> None:
    """Raise ValueError unless a metric's name, or a reward's text, is valid; nothing is loaded."""
    if name in METRICS:
        return
    if is_distance(name):
        parse_beta(name)
        return
    try:
        check_reward(name)
    except ValueError as error:
        raise ValueError(
            f"unknown metric {name!r}; expected some of {sorted([*METRICS, *DISTANCES])}, or a reward ({error})"
        ) from error


def resolve_metric(name: str, device: str) -> Metric:
    """Return a metric of :data:`METRICS`, or the mean of a reward, whose models run on ``device``."""
    return METRICS[name] if name in METRICS else RewardMean(resolve_reward(name), device)


@dataclass(frozen=True)
class RewardMean:
    """A reward's mean as a metric.

    Attributes:
        reward: scores the images.
        device: where its models run.
    """

    reward: RewardFunction
    device: str

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> float:
        """Return the mean over images (n, 3, H, W), uint8."""
        from diffusion_gym.rewards.attended import evaluating
        from diffusion_gym.rewards.base import evaluate_reward

        with evaluating(self.reward):
            return float(evaluate_reward(self.reward, images.to(self.device), prompts, metadata).mean())


def measure(metric: Metric, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> float:
    """Return a metric of images (n, 3, H, W), uint8, which is given their prompts' metadata if it takes them."""
    from diffusion_gym.rewards.metadata import metadata_arguments

    more, named = metadata_arguments(metric, len(prompts), metadata)
    return metric(images, prompts, *more, **named)


def check_needs(metric: Metric, records: Sequence[Prompt]) -> None:
    """Raise ValueError for a prompt that lacks the metadata that a metric, or a reward as one, needs."""
    from diffusion_gym.rewards.metadata import check_metadata

    check_metadata(metric.reward if isinstance(metric, RewardMean) else metric, records, "metric")


def is_distance(name: str) -> bool:
    """Return whether a metric is a distance of the policy from a distribution: less is nearer."""
    return name.partition("?")[0] in DISTANCES


def more_is_better(name: str) -> bool:
    """Return whether a metric falls as pictures get worse; distances and the KL from the start do not."""
    return name != KL_TO_START and not is_distance(name)


def resolve_distance(name: str) -> PolicyMetric:
    """Return the measure of a distance's name, with its ``?beta=NUMBER``."""
    from benchmarks.runs.exact_targets import DISTANCES, read_tuned

    distance, beta = DISTANCES[name.partition("?")[0]], parse_beta(name)
    return lambda algorithm: distance(read_tuned(algorithm), beta)


def parse_beta(text: str) -> float:
    """Return the beta that a distance's text names, or 1; raise ValueError for another option or value."""
    name, _, option = text.partition("?")
    key, _, value = option.partition("=")
    try:
        beta = float(value) if option else 1.0
    except ValueError:
        beta = math.nan
    if (option and key != "beta") or not 0 < beta < math.inf:
        raise ValueError(f"{name!r} takes one option, beta=NUMBER with a positive number; got {option!r}.")
    return beta
