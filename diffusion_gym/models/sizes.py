"""The size of the images that are asked for, and whether a model draws it."""

from diffusion_gym.models.base import DiffusionModel


def sized(model: DiffusionModel, own: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return height and width of a model's images in pixels: those of its settings, or else its own.

    Args:
        model: with its settings; nothing else of it has to be there yet.
        own: height and width without any settings.
        multiple: of which height and width in the settings must be.

    Raises:
        ValueError: a size that is no such multiple.
    """
    asked = (model.settings.height, model.settings.width)
    for name, size in zip(("height", "width"), asked, strict=True):
        if size is not None and size % multiple:
            near = max(multiple, round(size / multiple) * multiple)
            raise ValueError(
                f"{name} must be a multiple of {multiple} pixels for {model.name!r}, got {size}; {near} would do."
            )
    return asked[0] or own[0], asked[1] or own[1]


def check_size(model: DiffusionModel) -> None:
    """Raise ValueError where the settings ask for a size that the family did not take."""
    _, height, width = model.image_shape
    for name, size in (("height", height), ("width", width)):
        asked = getattr(model.settings, name)
        if asked not in (None, size):
            raise ValueError(
                f"{model.name!r} draws images of {height} x {width} pixels alone, as its pipeline does; leave out "
                f"{name}, got {asked}."
            )
