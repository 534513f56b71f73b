"""The repair of torchvision by its name inside the package, for scripts that call it themselves."""

from diffusion_gym_torchvision import repair_torchvision

__all__ = ["repair_torchvision"]
