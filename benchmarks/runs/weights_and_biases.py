"""Weights & Biases: the log's curves, and each evaluation's pictures and metrics; offline unless asked otherwise."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from stable_baselines3.common.logger import KVWriter

from diffusion_gym.naming import log_name

PROJECT = "diffusion-gym"
#: What the run's folder holds is sent, and nothing of the terminal, the machine's load, or the clone.
_SETTINGS: dict[str, Any] = {
    "console": "off", "silent": True, "disable_git": True, "disable_code": True, "save_code": False,
    "x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False,
}  # fmt: skip


class WeightsAndBiases(KVWriter):
    """Stable-Baselines3's log output to Weights & Biases; a resumed run continues there."""

    def __init__(self, folder: Path, config: Mapping[str, Any], mode: Literal["offline", "online"]) -> None:
        """Open a run named after the folder; its files go to the folder's ``wandb/``.

        ``config`` is shown beside the run; ``mode`` overrides the environment's ``WANDB_MODE``. Raise ValueError if no
        account is logged in.
        """
        import wandb

        self._wandb = wandb
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        try:
            self._run = wandb.init(
                project=PROJECT, name=folder.resolve().name, id=identity, resume="allow" if mode == "online" else None,
                dir=str(folder), config=dict(config), mode=mode, settings=wandb.Settings(**_SETTINGS),
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise ValueError(
                f"Weights & Biases could not be reached: {error}. Log in with 'wandb login', or use --wandb offline, "
                "which sends nothing."
            ) from error
        # A resumed run logs again what came after its checkpoint: steps on an axis of their own may go back.
        self._run.define_metric("*", step_metric="step")

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log one dump."""
        self._run.log({**key_values, "step": step})

    def write_evaluation(self, picture: Image.Image, metrics: Mapping[str, float], step: int) -> None:
        """Log an evaluation's grid, and those of its metrics that the log does not have."""
        values = {f"eval/{log_name(name)}": value for name, value in metrics.items()}
        self._run.log({**values, "eval/images": self._wandb.Image(picture), "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
