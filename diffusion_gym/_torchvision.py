"""The repair of torchvision, for a torch that does not call it by itself: 2.4, or one told not to load extensions."""

from diffusion_gym_torchvision import repair_torchvision

__all__ = ["repair_torchvision"]
