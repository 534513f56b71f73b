"""What a reward model that was loaded is tried on before it is used."""

import contextlib
from collections.abc import Iterator

import torch

from diffusion_gym.errors import summary


@contextlib.contextmanager
def tried(what: str, expected: str) -> Iterator[None]:
    """Let a model that loads, but fails in a first small forward, say so at once.

    Args:
        what: the reward's option and its value.
        expected: the kind of model that will do.

    Raises:
        ValueError: in place of whatever was raised inside.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models of other kinds raise many unrelated types
        raise ValueError(
            f"{what} was loaded, but fails on a first small input ({summary(error)}); expected {expected}."
        ) from error
