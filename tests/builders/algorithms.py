"""Which algorithms of the registry the slower tests run."""

from algorithms import ALGORITHMS

#: Further presets of GRPO: all of them pass its own tests and ``check_algorithm``, and "branched" stands for them here.
_PRESETS = {"grpo", "grpo-fast", "mixgrpo", "flow-dppo"}

#: One name for each class and kind of rollout.
KINDS = [name for name in ALGORITHMS if name not in _PRESETS]
