"""The starting model beside the policy, to which KL penalties, anchors and the logged KL are measured."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from algorithms.parallel.sharding import local
from algorithms.policy import DenoisingPolicy, Rows
from algorithms.weight_average import weights_replaced
from diffusion_gym.transitions import Gaussian, Transition


class Reference:
    """The pretrained model in the policy's own sampler, guidance and precision.

    With LoRA it is the policy with its adapters switched off, which takes no memory. Where all weights are trained it
    is the policy with the starting weights put in for a moment, of which it keeps a copy: as much memory as the trained
    weights. Text encoders in training are treated alike.
    """

    def __init__(self, policy: DenoisingPolicy) -> None:
        """Args: policy: still at its starting weights.

        Raises:
            ValueError: adapters that are not peft's, which cannot be switched off.
        """
        self._policy, self._trained = policy, policy.trainable_parameters()
        self._start: dict[str, Tensor] | None = None
        if policy.lora is None:
            self._start = {name: value.detach().clone() for name, value in self._trained.items()}
        else:
            from peft.tuners.tuners_utils import BaseTunerLayer

            self._adapted = [layer for layer in policy.denoiser.modules() if isinstance(layer, BaseTunerLayer)]
            if not self._adapted:
                raise ValueError(
                    f"the starting model is the policy with its adapters off, but the LoRA of {policy.model.name!r} "
                    "has no layer of peft's; train all weights (trainable='full'), or leave out the KL."
                )

    @property
    def nbytes(self) -> int:
        """Bytes of the copy that is kept here."""
        return 0 if self._start is None else sum(local(value).nbytes for value in self._start.values())

    @torch.no_grad()
    def distribution(self, rows: Rows, transition: Transition | None = None) -> Gaussian:
        """Return p(x_{t-1} | x_t, c) of the starting model for one chunk of rows, without gradients.

        Before the first update it equals the policy's bit for bit, for the same chunk.
        """
        with self.applied():
            return self._policy.distribution(rows, transition)

    def kl(self, rows: Rows, gaussian: Gaussian, transition: Transition | None = None) -> Tensor:
        """Exact KL(policy || start) of each step of a chunk, (m,), joint nats: ``|mu - mu_start|^2 / (2 s^2)``.

        A step without density counts 0.

        Args:
            rows: the chunk, m rows.
            gaussian: the policy's, for the same rows; gradients pass through it.
            transition: of both; None is the policy's.
        """
        return gaussian.kl(self.distribution(rows, transition))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the policy the starting weights inside a ``with`` block."""
        if self._start is not None:
            with weights_replaced(self._trained, self._start):
                yield
            return
        for layer in self._adapted:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._adapted:
                layer.enable_adapters(True)
