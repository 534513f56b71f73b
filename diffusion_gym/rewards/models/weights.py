"""Weights of reward models: the package's own small ones, a folder, or the model hub."""

import shlex
from pathlib import Path
from typing import NoReturn

from diffusion_gym.errors import summary
from diffusion_gym.models import check_device
from diffusion_gym.models.files import check_files
from diffusion_gym.models.loading import ASSETS

#: The small reward models of the emoji-animals world: clip/, aesthetic/, captioner/ and bert/.
EMBEDDED = ASSETS / "emoji-rewards"


def embedded(part: str) -> str:
    """Return the path of one of the package's own reward models.

    Raises:
        ValueError: it is not there.
    """
    path = EMBEDDED / part
    if not path.exists():
        raise ValueError(
            f"the embedded reward model {str(path)!r} is missing; install this package again, or in a clone make it "
            "with 'python -m benchmarks pretrain --only reward-models'."
        )
    return str(path)


def local_file(option: str, value: str, source: str) -> Path:
    """Return the path of a file of weights, fetched from the model hub if there is none.

    Args:
        option: the reward's option for it.
        value: a file, or ``owner/repository/file`` on the hub.
        source: where the published file is, for the message.

    Raises:
        ValueError: neither, or a file that could not be fetched.
    """
    if Path(value).is_file():
        return Path(value)
    repository, _, file = value.rpartition("/")
    if repository.count("/") != 1 or value.startswith((".", "/")):
        raise ValueError(f"{option}={value} is not a file. Download one, for example {source}, and give {option}=FILE.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub client raises many unrelated types
        raise ValueError(
            f"{option}={value} could not be fetched from the model hub ({type(error).__name__}). Download it where "
            f"there is a network ('hf download {repository} {file} --local-dir DIR') and give {option}=DIR/{file}."
        ) from error


def not_found(option: str, value: str, error: Exception, hub_id: str | None = None) -> NoReturn:
    """Raise ValueError for weights that cannot be loaded, with how to get them.

    Args:
        option: the reward's option for them.
        value: its value.
        error: the loading library's.
        hub_id: the repository to download; by default the value, if it looks like one.
    """
    check_files(Path(value), f"{option}={value}")
    if hub_id is None and value.count("/") == 1 and not value.startswith((".", "/")) and not Path(value).exists():
        hub_id = value
    advice = (
        f"Download them where there is a network ('hf download {shlex.quote(hub_id)} --local-dir DIR') and give "
        f"{option}=DIR."
        if hub_id
        else "Expected a folder or file with the weights, or a hub id such as 'owner/model'."
    )
    raise ValueError(f"the weights {option}={value} cannot be loaded ({summary(error)}). {advice}") from error


def check_placement(chunk_size: int, device: str | None) -> None:
    """Raise ValueError unless the size is an integer of at least 1 and the device None or one of this machine."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"the reward's chunk_size must be an integer of at least 1, got {chunk_size!r}.")
    if device is not None:
        check_device(device)
