"""Clocks and memory: what an interval took, and the most memory that a block held."""

import threading
import time
from dataclasses import dataclass

import psutil
import torch

_MEGABYTE = 1e6
_MEMORY_POLL_SECONDS = 0.002


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


class PeakMemory:
    """The most memory held inside a ``with`` block, in ``megabytes`` (10^6 bytes).

    On CUDA it is what torch's allocator gave out on the device. Elsewhere it is the resident memory of the whole
    process, read every 2 ms, with libraries and what the allocator keeps for later.
    """

    def __init__(self, device: torch.device) -> None:
        """Args: device: whose memory is measured."""
        self._device, self.megabytes = device, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "PeakMemory":
        synchronize(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        synchronize(self._device)
        if self._device.type == "cuda":
            self.megabytes = torch.cuda.max_memory_allocated(self._device) / _MEGABYTE
        else:
            self._done.set()
            self._thread.join()

    def _poll(self) -> None:
        process = psutil.Process()
        while True:
            self.megabytes = max(self.megabytes, process.memory_info().rss / _MEGABYTE)
            if self._done.wait(_MEMORY_POLL_SECONDS):
                return


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
