"""What tells one model from another, wherever it lies: its shapes, its settings, and a sample of its weights."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from diffusion_gym.models.base import DTYPES, DiffusionModel

#: JSON-serialisable: see :func:`fingerprint`.
Fingerprint = dict[str, Any]
#: Values of each tensor that are compared.
_SAMPLED = 64
#: Knuth's multiplicative hash (2^32 over the golden ratio): positions spread over a tensor, the same everywhere.
_KNUTH = 2654435761
_taken: WeakKeyDictionary[DiffusionModel, Fingerprint] = WeakKeyDictionary()


def fingerprint(model: DiffusionModel) -> Fingerprint:
    """Return a model's family, shapes, denoiser's and scheduler's settings, and a hash of 64 values of every weight.

    Taken once for each model object. Device, folder, names of tensors and their order do not matter. Detected are other
    architectures, retrained, fine-tuned or merged weights of any network, the text encoders and the VAE among them, and
    other noise schedules. Not detected are a change of single values outside of the sample, other tokenizer files, and
    settings of text encoders and VAE that leave shapes as they are. A model without networks is told by its name.
    """
    if model not in _taken:
        told = {} if model.networks else {"name": model.name}
        _taken[model] = _plain(
            {
                "family": type(model).__name__,
                **told,
                "latent_shape": model.latent_shape,
                "image_shape": model.image_shape,
                "conditioning_shapes": dict(model.conditioning_shapes),
                "denoiser": _public(model.denoiser_config),
                "scheduler": _public(model.scheduler_config),
                "weights": _hashes(model),
            }
        )
    return _taken[model]


def difference(saved: Fingerprint, present: Fingerprint) -> str | None:
    """Say what makes two fingerprints those of different models; None where they are of one.

    Settings are compared where both have them, for libraries add some. Weights are compared in the finer of the
    precisions that both could be loaded in; of a model in bfloat16 and one in float16 they cannot be.
    """
    for part in [name for name in present if name in saved and name != "weights"]:
        was, now = saved[part], present[part]
        if part in ("denoiser", "scheduler"):
            for key in [key for key in now if key in was and now[key] != was[key]]:
                return f"its {part}'s {key} is {now[key]!r}, and was {was[key]!r}"
        elif was != now:
            return f"its {part} is {now!r}, and was {was!r}"
    common = [dtype for dtype in DTYPES if dtype in saved["weights"] and dtype in present["weights"]]
    if common and saved["weights"][common[0]] != present["weights"][common[0]]:
        return "its weights are others"
    return None


def _hashes(model: DiffusionModel) -> dict[str, str]:
    """Dtype -> hash of the weights rounded to it, for each that the model's own can be rounded to exactly."""
    dtypes = list(DTYPES) if model.dtype == "float32" else [model.dtype]
    digests: dict[str, list[bytes]] = {dtype: [] for dtype in dtypes}
    for weight in _weights(model.networks):
        sample = _sample(weight)
        for dtype, found in digests.items():
            rounded = sample.to(DTYPES[dtype]).view(torch.uint8).tolist()
            found.append(hashlib.sha256(repr(tuple(weight.shape)).encode() + bytes(rounded)).digest())
    # Sorted: libraries rename and reorder tensors from version to version.
    return {dtype: hashlib.sha256(b"".join(sorted(found))).hexdigest() for dtype, found in digests.items() if found}


def _weights(networks: Iterable[nn.Module]) -> Iterable[Tensor]:
    """Each parameter once, also where networks share it."""
    return {id(weight): weight.detach() for network in networks for weight in network.parameters()}.values()


def _sample(weight: Tensor) -> Tensor:
    """64 of a tensor's values (some twice where it has fewer), on the CPU."""
    positions = torch.arange(1, _SAMPLED + 1) * _KNUTH % max(weight.numel(), 1)
    return weight.reshape(-1)[positions.to(weight.device)].cpu() if weight.numel() else weight.reshape(-1).cpu()


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what diffusers notes for itself, as its version and the folder."""
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def _plain(data: Mapping[str, Any]) -> Fingerprint:
    """Return it as JSON reads it back; arrays become lists."""
    plain: Fingerprint = json.loads(json.dumps(data, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
    return plain
