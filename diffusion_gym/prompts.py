"""Prompt sets: the paper's animals and activities, ImageNet's animals, lists, files, and held-out splits of them.

:func:`load_prompts` resolves names; ``NAME@train`` and ``NAME@held-out`` are the two sides of a fixed split.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from diffusion_gym.choices import ASSETS, EMOJI_WORLD
from diffusion_gym.naming import did_you_mean
from diffusion_gym.paths import user_path
from diffusion_gym.prompt_files import FORMATS as FORMATS
from diffusion_gym.prompt_files import read_prompts
from diffusion_gym.prompt_records import Prompt as Prompt
from diffusion_gym.prompt_records import PromptLike, as_prompt
from diffusion_gym.prompt_records import PromptSet as PromptSet

#: The 45 common animals of the paper's aesthetic and alignment tasks (Black et al. 2023, appendix).
ANIMALS: tuple[str, ...] = (
    *("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion"),
    *("tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale"),
    *("dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee", "pig"),
    *("turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo"),
)

#: The three activities of the paper's prompt-alignment task.
ACTIVITIES: tuple[str, ...] = ("washing dishes", "riding a bike", "playing chess")

#: Classes 0 to 397 of ImageNet-1k are animals, 398 ("abacus") begins the things.
IMAGENET_ANIMALS = 398

#: What ``prompts=`` accepts: a set's name, a file, or prompts, each a text or a record ``{"prompt": text, ...}``.
PromptSpec = str | Path | Sequence[PromptLike]
_Item = TypeVar("_Item")


def with_article(noun: str) -> str:
    """Return ``noun`` with its indefinite article: ``"a cat"``, ``"an ant"``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def animal_activities() -> tuple[str, ...]:
    """Return the paper's 135 prompts ``"a(n) [animal] [activity]"``, animals varying slowest."""
    return tuple(f"{with_article(animal)} {activity}" for animal in ANIMALS for activity in ACTIVITIES)


@lru_cache(maxsize=1)
def imagenet_animals() -> tuple[str, ...]:
    """Return the first name of each of ImageNet's 398 animals, from timm's label list: ``"tench"`` to ``"puffer"``."""
    from diffusion_gym_torchvision import repair_torchvision

    repair_torchvision()
    from timm.data.imagenet_info import ImageNetInfo

    labels = ImageNetInfo()
    return tuple(labels.index_to_description(i).partition(",")[0].strip() for i in range(IMAGENET_ANIMALS))


#: The prompt files of emoji-world: the training set, and what is held out of it.
_WORLD = ("train", "benchmark", "held-out", "held-out-counts", "held-out-objects", "held-out-pairs")


def _world_file(name: str) -> Path:
    """Return a prompt file of emoji-world."""
    return ASSETS / EMOJI_WORLD / "prompts" / f"{name}.jsonl"


#: Named prompt sets. A new set is one line here: its name and a function without arguments, for prompts or their file.
PROMPT_SETS: dict[str, Callable[[], Sequence[PromptLike] | Path]] = {
    "activities": animal_activities,
    "animals": lambda: ANIMALS,
    "animals-activities": animal_activities,  # the older name of "activities"
    **{f"{EMOJI_WORLD}-{name}".removesuffix("-train"): partial(_world_file, name) for name in _WORLD},
    "imagenet-animals": imagenet_animals,
    "other-animals": lambda: ANIMALS[10:],  # to be held out where ten-animals are trained on
    "ten-animals": lambda: ANIMALS[:10],
}
_PAIRS = ("activities", "animals-activities")  # sets of pairs, whose split keeps both halves of each in training
_HOLD_OUT_EVERY = 5
_SPLITS = ("train", "held-out")


def resolve_prompts(prompts: PromptSpec) -> tuple[str, ...]:
    """Return the texts of :func:`load_prompts`."""
    return load_prompts(prompts).texts


def load_prompts(prompts: PromptSpec) -> PromptSet:
    """Return the prompts of a set's name, the path of a file, or a sequence.

    Args:
        prompts: a key of :data:`PROMPT_SETS`, or a path (with a suffix or a separator) of a UTF-8 file in one of the
            :data:`FORMATS` (``.txt`` has one prompt per line); both may end in ``@train`` or ``@held-out`` for one side
            of the split. Or the prompts themselves, as texts, :class:`Prompt`, or mappings ``{"prompt": text}`` with
            ``weight``, ``negative_prompt``, ``image`` and any further fields, their metadata.

    Raises:
        ValueError: an unknown set, an unreadable file, a weight that is not positive, an image that is not there, or no
            prompt at all.
        TypeError: something that is no prompt, or metadata that JSON cannot hold.
    """
    if isinstance(prompts, Path):
        prompts = str(prompts)
    if isinstance(prompts, str):
        name, _, split = prompts.rpartition("@")
        if name and split in _SPLITS:
            return _split(name, _named(name), split)
        return _named(prompts)
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a set's name, a file or a sequence of texts, got {type(prompts).__name__}.")
    if len(prompts) == 0:
        raise ValueError("prompts is empty; expected at least one prompt.")
    return _records(prompts)


def check_prompts(prompts: PromptSpec) -> None:
    """Raise ValueError or TypeError as :func:`load_prompts` does, without building a named set."""
    name, _, split = prompts.rpartition("@") if isinstance(prompts, str) else ("", "", "")
    if (name if split in _SPLITS else prompts) not in list(PROMPT_SETS):
        load_prompts(prompts)


def evaluation_prompts(prompts: Sequence[_Item], n: int, per_prompt: int = 1) -> list[_Item]:
    """Return n prompts, each ``per_prompt`` times in a row.

    They are all in turn, or, of more than there is room for, evenly spaced ones (the first of ImageNet's are all fish).
    """
    count, room = len(prompts), -(-n // per_prompt)
    shown = [prompts[i % count] if count <= room else prompts[i * count // room] for i in range(room)]
    return [shown[i // per_prompt] for i in range(n)]


def held_out_indices(name: str, count: int) -> list[int]:
    """Return which prompts of a set are held out of training.

    Of the activity prompts, each animal's activity number (animal's number modulo 3): 45 of 135, so that each animal
    is trained with two activities, each activity with 30 animals, and no held-out pair with itself. Of any other set
    or file, every fifth prompt.
    """
    if name in _PAIRS:
        k = len(ACTIVITIES)
        return [index for index in range(count) if index % k == (index // k) % k]
    return list(range(_HOLD_OUT_EVERY - 1, count, _HOLD_OUT_EVERY))


def _split(name: str, prompts: PromptSet, split: str) -> PromptSet:
    held_out = held_out_indices(name, len(prompts.texts))
    if not held_out:
        raise ValueError(
            f"{name!r} holds {len(prompts.texts)} prompts, too few to split: every {_HOLD_OUT_EVERY}th is held out."
        )
    return prompts.pick(
        held_out if split == "held-out" else sorted(set(range(len(prompts.texts))).difference(held_out))
    )


def _records(prompts: Sequence[PromptLike]) -> PromptSet:
    return PromptSet.of([as_prompt(item, f"prompts[{index}]") for index, item in enumerate(prompts)])


def _named(name: str) -> PromptSet:
    if name in PROMPT_SETS:
        prompts = PROMPT_SETS[name]()
        return read_prompts(prompts) if isinstance(prompts, Path) else _records(prompts)
    if Path(name).suffix or "/" in name or "\\" in name:
        return read_prompts(user_path(name))
    raise ValueError(
        f"unknown prompt set {name!r}; expected one of {sorted(PROMPT_SETS)}, with or without @train or @held-out, a "
        f"file such as 'prompts.txt' with one prompt per line, or, in Python, a list of prompts ([{name!r}])."
        f"{did_you_mean(name.partition('@')[0], PROMPT_SETS)}"
    )
