"""Prompt sets: the paper's animals and activities, lists, and files; names resolve in :func:`resolve_prompts`."""

from collections.abc import Callable, Sequence
from pathlib import Path

#: The 45 common animals of the paper's aesthetic and alignment tasks (Black et al. 2023, appendix).
ANIMALS: tuple[str, ...] = (
    *("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion"),
    *("tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale"),
    *("dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee", "pig"),
    *("turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo"),
)

#: The three activities of the paper's prompt-alignment task.
ACTIVITIES: tuple[str, ...] = ("washing dishes", "riding a bike", "playing chess")


def with_article(noun: str) -> str:
    """Return ``noun`` with its indefinite article: ``"a cat"``, ``"an ant"``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def animal_activities() -> tuple[str, ...]:
    """Return the paper's 135 prompts ``"a(n) [animal] [activity]"``, animals varying slowest."""
    return tuple(f"{with_article(animal)} {activity}" for animal in ANIMALS for activity in ACTIVITIES)


#: Named prompt sets. A new set is one line here: its name and a function without arguments.
PROMPT_SETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "animals": lambda: ANIMALS,
    "animals-activities": animal_activities,
    "ten-animals": lambda: ANIMALS[:10],
}


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read a text file of prompts, UTF-8, one a line; blank lines are skipped.

    Raises:
        ValueError: the file is missing, is not UTF-8 text, or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"cannot read prompts from {str(path)!r}: {reason}. Expected UTF-8 text, one prompt a line."
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"the prompt file {str(path)!r} holds no prompt; expected one prompt a line.")
    return prompts


def resolve_prompts(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """Turn a set's name, the path of a text file, or a sequence of texts into a tuple of prompts.

    Args:
        prompts: a key of :data:`PROMPT_SETS`; or a path (it has a suffix or a separator) of a UTF-8 file with
            one prompt a line; or the prompts themselves. A single prompt is a sequence of one.

    Raises:
        ValueError: an unknown set, an unreadable file, or no prompt at all.
        TypeError: something that is not text.
    """
    if isinstance(prompts, Path):
        return read_prompts(prompts)
    if isinstance(prompts, str):
        if prompts in PROMPT_SETS:
            return PROMPT_SETS[prompts]()
        if Path(prompts).suffix or "/" in prompts or "\\" in prompts:
            return read_prompts(Path(prompts))
        raise ValueError(
            f"unknown prompt set {prompts!r}; expected one of {sorted(PROMPT_SETS)}, a file such as 'prompts.txt' "
            f"with one prompt a line, or, in Python, a list of prompts (for a single prompt: [{prompts!r}])."
        )
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a set's name, a file or a sequence of texts, got {type(prompts).__name__}.")
    if len(prompts) == 0:
        raise ValueError("prompts is empty; expected at least one prompt.")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompts[{index}] must be text, got {type(prompt).__name__}: {prompt!r}.")
    return tuple(prompts)
