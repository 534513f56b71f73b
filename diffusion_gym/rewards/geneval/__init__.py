"""``geneval``: a verifiable reward for objects, their number, colours and positions."""

from diffusion_gym.rewards.geneval.reward import WORLD, GenEval, check_known, examine

__all__ = ["WORLD", "GenEval", "check_known", "examine"]
