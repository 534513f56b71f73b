"""TensorBoard events of a run: the log's curves, and each evaluation's pictures and metrics."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from stable_baselines3.common.logger import TensorBoardOutputFormat

from diffusion_gym.naming import log_name


class TensorBoard(TensorBoardOutputFormat):
    """Stable-Baselines3's output, which also takes evaluations and continues after a resume."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        """Open the folder; after ``steps_done`` denoising steps TensorBoard hides what a killed run logged."""
        from torch.utils.tensorboard import SummaryWriter  # imported late: it takes a second

        self.writer = SummaryWriter(str(folder), purge_step=steps_done + 1 if steps_done else None)
        self._is_closed = False

    def write_evaluation(self, picture: Image.Image, metrics: Mapping[str, float], step: int) -> None:
        """Write an evaluation's grid, and those of its metrics that the log does not have."""
        self.writer.add_image("eval/images", np.asarray(picture), step, dataformats="HWC")
        for name, value in metrics.items():
            self.writer.add_scalar(f"eval/{log_name(name)}", value, step)
        self.writer.flush()
