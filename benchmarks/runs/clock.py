"""Wall-clock and processor time of work on a device."""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seconds:
    """A moment, or an interval: on the clock, and of this process's own processor time (all threads).

    Processor time does not count what other programs took from this one.
    """

    wall: float
    cpu: float

    @classmethod
    def now(cls, device: torch.device) -> "Seconds":
        """Return the present moment, once the device is idle."""
        synchronize(device)
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, earlier: "Seconds") -> "Seconds":
        return Seconds(self.wall - earlier.wall, self.cpu - earlier.cpu)

    def __truediv__(self, number: float) -> "Seconds":
        return Seconds(self.wall / number, self.cpu / number)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
