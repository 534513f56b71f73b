"""What one forward pass takes: in sampling a :class:`Pass`, in an update the same as a :class:`SampledChunk`."""

from dataclasses import dataclass

from torch import Tensor

from algorithms.policy import DenoisingPolicy, Rows
from diffusion_gym.transitions import Gaussian, Transition


@dataclass(frozen=True)
class Pass:
    """Rows of one step that one forward pass takes, and the images that it moves.

    Attributes:
        rows: the m images, among those kept on this rank, whose latents are the rows.
        images: the k images that are moved: each its own row (then the same as ``rows``), or ``copies`` says which.
        copies: (k,), int64, the row of each image; None where each is its own.
        transition: what the step is drawn with; None is the policy's.
    """

    rows: slice | Tensor
    images: slice | Tensor
    copies: Tensor | None = None
    transition: Transition | None = None

    def within(self, start: int) -> slice | Tensor:
        """Return :attr:`images` as positions in a round that begins with the image ``start``."""
        if isinstance(self.images, slice):
            return slice(self.images.start - start, self.images.stop - start)
        return self.images - start


@dataclass(frozen=True)
class SampledChunk:
    """Transitions of one step that were sampled in one forward pass, and are scored again in one.

    Attributes:
        images: positions of its k images among those kept on this rank.
        rows: x_t, step and conditioning, m rows: one for each image, or fewer where images were one until this step.
        next_latents: (k, c, h, w), float32, x_{t-1} as it was sampled.
        log_prob: (k,), float32, log-density of x_{t-1} under the policy that sampled, as :attr:`Rollout.log_probs`.
        weight: multiplies the chunk's loss: 1, or 0 where the pass only keeps ranks in step.
        step: from 0, the noisiest.
        copies: (k,), int64, the row of each image; None where each has its own.
        transition: what x_{t-1} was drawn with; None is the policy's.
        mean: (k, c, h, w), float32, of the policy that sampled, where the rollout keeps it.
    """

    images: slice | Tensor
    rows: Rows
    next_latents: Tensor
    log_prob: Tensor
    weight: int
    step: int
    copies: Tensor | None = None
    transition: Transition | None = None
    mean: Tensor | None = None

    def log_prob_under(self, policy: DenoisingPolicy) -> tuple[Tensor, Gaussian]:
        """Score x_{t-1} with gradients: its log-density (k,), as :attr:`log_prob`, and the images' Gaussian."""
        gaussian = self.per_image(policy.distribution(self.rows, self.transition))
        return gaussian.relative_log_prob(self.next_latents), gaussian

    def per_image(self, gaussian: Gaussian) -> Gaussian:
        """Return the k images' Gaussian, from that of the rows."""
        return gaussian if self.copies is None else gaussian.select(self.copies)
