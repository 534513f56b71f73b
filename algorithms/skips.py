"""Updates that were skipped because their gradient was not finite: counted, and too many in a row end the run."""

from collections.abc import Mapping


class DivergedError(RuntimeError):
    """Training cannot go on: gradient after gradient is not finite."""


class SkippedUpdates:
    """Counts skipped updates.

    Attributes:
        total: since training began.
        in_a_row: since the last update that was made.
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self.total = self.in_a_row = 0

    def made(self) -> None:
        """Note an update that was made."""
        self.in_a_row = 0

    def skip(self, norm: float, limit: int) -> None:
        """Note an update that was skipped.

        Raises:
            DivergedError: it was one more in a row than ``limit``.
        """
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > limit:
            raise DivergedError(
                f"{self.in_a_row} updates in a row were skipped, because the norm of their gradient was {norm}; "
                f"expected a finite one, and max_skipped_updates allows {limit}. The weights and moments are those "
                "before them. Look for rewards of extreme size, lower learning_rate or clip_range, or compute in "
                "float32 (autocast 'none'); then go on from the last checkpoint."
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts, JSON-serialisable."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]
