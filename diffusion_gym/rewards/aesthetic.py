"""LAION's aesthetic score as a reward (Schuhmann 2022; Black et al. 2023, section 5.2): CLIP embedding, linear MLP."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_gym.chunks import in_chunks
from diffusion_gym.rewards.models.clip import load_clip
from diffusion_gym.rewards.models.weights import check_placement, embedded, local_file, not_found

#: Positions of the linear layers in LAION's published head; dropout lies between them, and no activation.
LAYERS = (0, 2, 4, 6, 7)
HEAD_SOURCE = (
    "'sac+logos+ava1-l14-linearMSE.pth' from https://github.com/christophschuhmann/improved-aesthetic-predictor "
    "(for CLIP ViT-L-14/openai)"
)


class Aesthetic:
    """``head(e / |e|)``, with e CLIP's embedding of the image; the prompt does not count.

    LAION's head gives about 1 to 10, and was fitted to people's ratings of photographs and generated pictures. The
    embedded head takes its place in the emoji-animals world.
    """

    name = "aesthetic"

    def __init__(
        self, clip: str | None = None, head: str | None = None, chunk_size: int = 16, device: str | None = None
    ) -> None:
        """Load CLIP and head.

        Args:
            clip: as in :func:`~diffusion_gym.rewards.models.clip.load_clip`; None is the embedded model.
            head: a .pth or .safetensors file, or ``owner/repository/file`` on the hub; None is the embedded head.
            chunk_size: images at a time.
            device: where the models run; None follows the images.

        Raises:
            ValueError: weights that cannot be had, or a head for embeddings of another size.
        """
        check_placement(chunk_size, device)
        if clip is not None and head is None:
            raise ValueError(f"aesthetic with clip={clip} needs its head too: head=FILE, for example {HEAD_SOURCE}.")
        self._head = load_head(embedded("aesthetic/head.safetensors") if head is None else head)
        self._clip = load_clip(clip or embedded("clip"), device)
        size = self._head[0].in_features
        if size != self._clip.dimension:
            raise ValueError(
                f"the aesthetic head takes embeddings of size {size}, but CLIP gives {self._clip.dimension}; LAION's "
                "published head belongs to clip=ViT-L-14/openai."
            )
        self._chunk_size = chunk_size

    def __deepcopy__(self, memo: dict[int, Any]) -> "Aesthetic":
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32."""
        return self._rate(self._clip.embed_images(images, self._chunk_size)).to(images.device)

    def pixels(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32, with gradient to images (n, 3, H, W), float32 in [0, 1]."""
        return self._rate(self._clip.embed_pixels(images, self._chunk_size)).to(images.device)

    def _rate(self, embeddings: Tensor) -> Tensor:
        return in_chunks(self._head.to(embeddings.device), embeddings, self._chunk_size)[:, 0]


def load_head(head: str) -> nn.Sequential:
    """Load a head under LAION's published names, ``layers.0.weight`` to ``layers.7.bias``; sizes are the file's.

    Args:
        head: a .safetensors file or a .pth file, or ``owner/repository/file`` on the hub. Loading executes no code.

    Raises:
        ValueError: a file that is missing, or is no such head.
    """
    path = local_file("head", head, HEAD_SOURCE)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many unrelated types
        not_found("head", head, error)
    return linear_layers(tensors, head)


def linear_layers(tensors: Mapping[str, Tensor], head: str) -> nn.Sequential:
    """Return the linear layers of tensors under LAION's names; raises ValueError, with the head's name, for others."""
    names = {f"layers.{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")}
    if not isinstance(tensors, Mapping) or set(tensors) != names:
        # A head with activations has the same kind of tensors at other positions; loading it here would be wrong.
        found = sorted(tensors) if isinstance(tensors, Mapping) else type(tensors).__name__
        raise ValueError(
            f"head={head} is not a LAION head without activations: expected {sorted(names)}, found {found}."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in LAYERS:
        rows, columns = tensors[f"layers.{layer}.weight"].shape
        layers[str(layer)] = nn.Linear(columns, rows)
    module = nn.Sequential(layers)
    try:
        module.load_state_dict({name.removeprefix("layers."): tensor.float() for name, tensor in tensors.items()})
        module(torch.zeros(1, tensors["layers.0.weight"].shape[1])).reshape(())
    except RuntimeError as error:
        raise ValueError(f"head={head}: the layers' sizes do not follow each other to one score: {error}.") from error
    return module.eval().requires_grad_(False)
