"""CLIP through open_clip (Radford et al. 2021): normalised embeddings of images and texts, for the rewards on them."""

from functools import cache, partial
from pathlib import Path
from typing import Any

from diffusion_gym.errors import first_run
from diffusion_gym.rewards.models.embedder import Embedder, Preprocess
from diffusion_gym.rewards.models.weights import not_found
from diffusion_gym_torchvision import repair_torchvision


@cache
def load_clip(clip: str, device: str | None, option: str = "clip", resize_mode: str | None = None) -> "Clip":
    """Return the model, loaded once per process; rewards that name the same one share it.

    Args:
        clip: ``architecture/weights`` with open_clip's names (``ViT-L-14/openai``) or
            with a file (``ViT-L-14-quickgelu/folder/model.pt``); a folder with an open_clip_config.json; or
            ``hf-hub:owner/model``.
        device: where it runs; None follows the images.
        option: the reward's option for the weights, for messages.
        resize_mode: open_clip's ``shortest``, ``longest`` or ``squash``; None is the model's own.

    Raises:
        ValueError: unknown names, or weights that cannot be had.
    """
    return Clip(clip, device, option, resize_mode)


class Clip(Embedder):
    """A model of open_clip."""

    def __init__(self, source: str, device: str | None, option: str = "clip", resize_mode: str | None = None) -> None:
        """Load weights; see :func:`load_clip`."""
        repair_torchvision()
        import open_clip

        arguments = _arguments(source)
        try:
            model = open_clip.create_model(**arguments, require_pretrained=True).eval().requires_grad_(False)
            tokenize = open_clip.get_tokenizer(arguments["model_name"])
        except Exception as error:  # open_clip, the hub client and torch raise many unrelated types
            file = arguments.get("pretrained", "")
            not_found(option, file if Path(file).is_file() else source, error, _hub_id(arguments))
        config = {**model.visual.preprocess_cfg, **({"resize_mode": resize_mode} if resize_mode else {})}
        names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
        preprocess = Preprocess(config["size"], **{name: config[name] for name in names if name in config})
        expected = "an image and a text tower with embeddings of one size"
        with first_run(f"{option}={source}", "a first small input", expected):
            encoders = (partial(model.encode_image, normalize=True), partial(model.encode_text, normalize=True))
            super().__init__(model, preprocess, *encoders, tokenize, device)


def _arguments(source: str) -> dict[str, Any]:
    """Return the arguments of open_clip's create_model for a name that :func:`load_clip` takes."""
    import open_clip

    if (Path(source) / "open_clip_config.json").is_file():
        return {"model_name": f"local-dir:{source}"}
    if source.startswith("hf-hub:"):
        return {"model_name": source}
    architecture, _, weights = source.partition("/")
    if architecture not in open_clip.list_models() or not weights:
        raise ValueError(
            f"clip={source} names no CLIP; expected ARCHITECTURE/WEIGHTS with open_clip's names (ViT-L-14/openai), a "
            "folder with an open_clip_config.json, or hf-hub:OWNER/MODEL."
        )
    published = open_clip.get_pretrained_cfg(architecture, weights)
    if not published and not Path(weights).is_file():
        known = open_clip.list_pretrained_tags_by_model(architecture)
        raise ValueError(f"clip={source}: {weights!r} is no file, and {architecture} has the weights {known}.")
    # OpenAI's weights were trained with QuickGELU; open_clip only warns where architecture and weights differ in it.
    quick = bool(published.get("quick_gelu"))
    return {"model_name": architecture, "pretrained": weights, **({"force_quick_gelu": True} if quick else {})}


def _hub_id(arguments: dict[str, Any]) -> str | None:
    """Return the hub's repository of the weights, if they have one."""
    import open_clip

    name = arguments["model_name"]
    if name.startswith("hf-hub:"):
        return str(name.removeprefix("hf-hub:"))
    published = open_clip.get_pretrained_cfg(name, arguments["pretrained"]) if "pretrained" in arguments else {}
    return published.get("hf_hub", "").strip("/") or None
