"""Which algorithms of the registry the slower tests run."""

from algorithms import ALGORITHMS

#: Names that differ from another one of their class in numbers and losses alone: all pass ``check_algorithm`` and the
#: tests of their class, and another name stands for them where a test is about runs, files or signals.
_PRESETS = {"grpo", "grpo-fast", "mixgrpo", "flow-dppo"}
_VARIANTS = {"ddpo-sf", "sparse-rwr", "draft-lv", "refl", "opsd"}

#: One name for each class and kind of rollout.
KINDS = [name for name in ALGORITHMS if name not in _PRESETS | _VARIANTS]
#: One name for each way to weigh images.
WEIGHINGS = [name for name in ALGORITHMS if name not in _PRESETS]
