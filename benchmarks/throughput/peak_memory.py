"""The most memory that a block held."""

import threading

import psutil
import torch

from benchmarks.runs.clock import synchronize

_MEGABYTE = 1e6
_MEMORY_POLL_SECONDS = 0.002


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
