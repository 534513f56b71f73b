"""Weights in the place of others for a while, and the exponential moving average (EMA) of the trained weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from algorithms.parameters import Named


@contextlib.contextmanager
def weights_replaced(named: Named, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the parameters have other values inside the ``with`` block; nothing is copied.

    A graph that was recorded outside must not go backward inside.

    Args:
        named: parameters by name.
        tensors: a value for each, of its shape, dtype and device.
    """
    before = {name: parameter.data for name, parameter in named.items()}
    try:
        for name, parameter in named.items():
            parameter.data = tensors[name]
        yield
    finally:
        for name, parameter in named.items():
            parameter.data = before[name]


class WeightAverage:
    """``average <- decay average + (1 - decay) weight`` after each update, begun at the starting weights.

    About the last ``1 / (1 - decay)`` updates count, and of the start ``decay^k`` is left after k updates.

    Attributes:
        tensors: the averages by the weights' names, each of its weight's shape, float32, beside it on its device.
    """

    def __init__(self, named: Named, decay: float) -> None:
        """Begin at the present weights.

        Args:
            named: the trained weights; with adapters these alone.
            decay: in [0, 1).
        """
        self._named, self._decay = dict(named), decay
        self.tensors: dict[str, Tensor] = {}
        self.load(named)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        for name, value in self._named.items():
            self.tensors[name].lerp_(value, 1 - self._decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from copies of other tensors: averages of an earlier run, or weights."""
        self.tensors = {name: tensors[name].detach().to(w.device, copy=True) for name, w in self._named.items()}

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Let the policy have the averages for weights inside a ``with`` block."""
        return weights_replaced(self._named, self.tensors)
