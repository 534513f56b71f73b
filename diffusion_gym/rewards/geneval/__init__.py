"""``geneval``: a verifiable reward for objects, their number, colours and positions."""

from typing import TYPE_CHECKING

from diffusion_gym import _lazy

if TYPE_CHECKING:
    from diffusion_gym.rewards.geneval.protocol import Rules, Verdict, judge, relations
    from diffusion_gym.rewards.geneval.request import Request, read_request
    from diffusion_gym.rewards.geneval.reward import WORLD, GenEval, check_known, examine

__all__ = [
    "WORLD",
    "GenEval",
    "Request",
    "Rules",
    "Verdict",
    "check_known",
    "examine",
    "judge",
    "read_request",
    "relations",
]

_MODULES = {
    "protocol": ("Rules", "Verdict", "judge", "relations"),
    "request": ("Request", "read_request"),
    "reward": ("WORLD", "GenEval", "check_known", "examine"),
}
__getattr__, __dir__ = _lazy.attributes(
    __name__, {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
)
