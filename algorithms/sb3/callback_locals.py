"""What Stable-Baselines3's callbacks find in ``self.locals``: NumPy arrays, made from tensors when they are read."""

from collections import UserDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from diffusion_gym.rewards import Scores


@dataclass(frozen=True)
class Step:
    """One step of n environments, on the device.

    Attributes:
        latents: (n, c, h, w), float32, after the step.
        observation: name -> (n, ...), after the step; of an episode's last one too.
        info: the vector environment's.
        scores: of an episode's last step, the images' rewards, which a thread may still be working on; else None.
    """

    latents: Tensor
    observation: Mapping[str, Tensor]
    info: Mapping[str, Any]
    scores: Future[Scores] | None

    def __len__(self) -> int:
        """Return n."""
        return len(self.latents)

    @property
    def dones(self) -> np.ndarray:
        """(n,), bool: all environments end at the same step."""
        return np.full(len(self), self.scores is not None)

    @property
    def actions(self) -> np.ndarray:
        """(n, c, h, w), float32, the next latents."""
        return _array(self.latents)

    @cached_property
    def rewards(self) -> np.ndarray:
        """(n,), float32: 0 until the last step, then the images' rewards, for which this waits."""
        return np.zeros(len(self), np.float32) if self.scores is None else _array(self.scores.result().rewards)

    @cached_property
    def new_obs(self) -> dict[str, np.ndarray]:
        """Name -> (n, ...); after the last step that of the ended episode."""
        return {name: _array(value) for name, value in self.observation.items()}

    @property
    def infos(self) -> list[dict[str, Any]]:
        """Prompt and step of each environment, and at the end the image (H, W, 3) and the entries of a Monitor.

        Of a combined reward also ``rewards``, name -> float: each reward's own score.
        """
        arrays = {name: value for name, value in self.info.items() if not name.startswith("_")}
        if "image" in arrays:
            arrays["image"] = _array(arrays["image"].permute(0, 2, 3, 1))
        infos = [{name: value[row] for name, value in arrays.items()} for row in range(len(self))]
        if self.scores is not None:
            parts = {name: _array(scores) for name, scores in self.scores.result().parts.items()}
            for row, info in enumerate(infos):
                if parts:
                    info["rewards"] = {name: float(scores[row]) for name, scores in parts.items()}
                info["terminal_observation"] = {name: value[row] for name, value in self.new_obs.items()}
                info["TimeLimit.truncated"] = False
                info["episode"] = {"r": float(self.rewards[row]), "l": int(info["step_index"])}
        return infos


class CallbackLocals(UserDict[str, Any]):
    """The variables of ``learn`` and of its latest step; costly ones are made when first read."""

    def take(self, step: Step) -> None:
        """Keep the latest step."""
        self.data |= {"dones": step.dones, **dict.fromkeys(("rewards", "infos", "new_obs", "actions"), step)}

    def forget(self) -> None:
        """Drop what was not read, which would keep the step's tensors on the device."""
        self.data = {name: value for name, value in self.data.items() if not isinstance(value, Step)}

    def __getitem__(self, name: str) -> Any:
        """Return a variable; those of the step are made now."""
        value = self.data[name]
        if isinstance(value, Step):
            value = self.data[name] = getattr(value, name)
        return value

    def update(self, *others: Any, **variables: Any) -> None:
        """Update as a dict does; from itself, as Stable-Baselines3 does after each step, nothing changes."""
        if not (others and others[0] is self):
            super().update(*others, **variables)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
