"""Fingerprints of models: shapes, settings and a sample of the weights, wherever the model is stored."""

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

    Computed once per model object. Device, folder, names of tensors and their order do not matter. It changes with the
    architecture, the noise schedule, and retrained, fine-tuned or merged weights of any network. It does not change
    with single values outside of the sample, tokenizer files, and settings of text encoders and VAE that leave shapes
    as they are. A model without networks has its name as well.
    """
    if model not in _taken:
        name = {} if model.networks else {"name": model.name}
        _taken[model] = _plain(
            {
                "family": type(model).__name__,
                **name,
                "latent_shape": model.latent_shape,
                "image_shape": model.image_shape,
                "conditioning_shapes": dict(model.conditioning_shapes),
                "denoiser": _public(model.denoiser_config),
                "scheduler": _public(model.scheduler_config),
                "weights": _hashes(model),
                "start": _start_hash(model),
            }
        )
    return _taken[model]


def difference(saved: Fingerprint, present: Fingerprint) -> str | None:
    """Return the first difference of two fingerprints, or None if they are of one model.

    Settings are compared if both have them, for libraries add some. Weights are compared in the finer of the precisions
    that both could be loaded in; those of a model in bfloat16 and one in float16 cannot be compared.
    """
    for part in [name for name in present if name in saved and name != "weights"]:
        was, now = saved[part], present[part]
        if part in ("denoiser", "scheduler"):
            for key in [key for key in now if key in was and now[key] != was[key]]:
                return f"its {part}'s {key} is {now[key]!r}, and was {was[key]!r}"
        elif was != now and part == "start":
            return "the LoRA that it was trained on from (start_from) is another"
        elif was != now:
            return f"its {part} is {now!r}, and was {was!r}"
    common = [dtype for dtype in DTYPES if dtype in saved["weights"] and dtype in present["weights"]]
    if common and saved["weights"][common[0]] != present["weights"][common[0]]:
        return "its weights are others"
    return None


def _hashes(model: DiffusionModel) -> dict[str, str]:
    """Return dtype -> hash of the weights rounded to it, for each dtype that the model could also be loaded in."""
    dtypes = list(DTYPES) if model.dtype == "float32" else [model.dtype]
    digests: dict[str, list[bytes]] = {dtype: [] for dtype in dtypes}
    for weight in _weights(model.networks):
        sample = _sample(weight)
        for dtype, found in digests.items():
            rounded = sample.to(DTYPES[dtype]).view(torch.uint8).tolist()
            found.append(hashlib.sha256(repr(tuple(weight.shape)).encode() + bytes(rounded)).digest())
    # Sorted: libraries rename and reorder tensors from version to version.
    return {dtype: hashlib.sha256(b"".join(sorted(found))).hexdigest() for dtype, found in digests.items() if found}


def _start_hash(model: DiffusionModel) -> str | None:
    """Return a hash of adapters that are trained further, each tensor in full, or None without any."""
    if model.start is None:
        return None
    tensors = {f"{c}.{name}": value for c, part in model.start.weights.items() for name, value in part.items()}
    found = [name.encode() + value.float().cpu().numpy().tobytes() for name, value in sorted(tensors.items())]
    return hashlib.sha256(b"".join(found)).hexdigest()


def _weights(networks: Iterable[nn.Module]) -> Iterable[Tensor]:
    """Return each parameter once, also if networks share it."""
    return {id(weight): weight.detach() for network in networks for weight in network.parameters()}.values()


def _sample(weight: Tensor) -> Tensor:
    """Return 64 of a tensor's values (some twice if it has fewer), on the CPU."""
    positions = torch.arange(1, _SAMPLED + 1) * _KNUTH % max(weight.numel(), 1)
    return weight.reshape(-1)[positions.to(weight.device)].cpu() if weight.numel() else weight.reshape(-1).cpu()


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those that diffusers notes for itself, such as its version."""
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def _plain(data: Mapping[str, Any]) -> Fingerprint:
    """Return it as JSON reads it back; arrays become lists."""
    plain: Fingerprint = json.loads(json.dumps(data, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
    return plain
