"""The commands of docs/graphics-cards.md, each with its estimate of memory, made without weights and without a GPU.

``python docs/tools/graphics_cards.py`` writes the blocks between ``<!-- card: NAME -->`` and ``<!-- end -->`` anew,
which takes some minutes; with ``--check`` it only compares. The networks have the published configurations of Stable
Diffusion 1.5 and SDXL, and tensors without values (torch's FakeTensorMode): what is counted are sizes, as ``train``
counts them before it starts.
"""

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gymnasium
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import diffusion_gym  # noqa: F401  (registers the environment)
from algorithms import DDPO, DenoisingPolicy
from benchmarks.gpu_report.published import stable_diffusion_15, stable_diffusion_xl
from benchmarks.runs.memory import estimate_memory
from diffusion_gym.models.adapters import Groups
from diffusion_gym.models.base import DTYPES, Conditioning, LoRAConfig, ModelDtype
from diffusion_gym.models.stable_diffusion import StableDiffusion
from diffusion_gym.models.stable_diffusion_xl import StableDiffusionXL

PAGE = Path(__file__).parents[1] / "graphics-cards.md"
CARDS = (16, 24, 48, 80)  # GB, 10^9 bytes
#: Of a card, what the estimate may take: kernels' workspace, CUDA itself and gaps between tensors are not in it.
SHARE = 0.85
_BLOCK = re.compile(r"(<!-- card: (?P<name>\S+) -->\n)(?P<text>.*?)(<!-- end -->)", flags=re.DOTALL)
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)


class _WithoutValues:
    """Before a family's class: a model of published shapes whose tensors have no values."""

    def __init__(self, build: Callable[[], dict[str, nn.Module]], dtype: ModelDtype) -> None:
        from diffusers import DDIMScheduler

        torch.set_default_dtype(DTYPES[dtype])
        with _FAKE:
            parts = build()
        torch.set_default_dtype(torch.float32)
        for part in parts.values():
            part.requires_grad_(False).eval()
        scheduler = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1)
        tokenizer = SimpleNamespace(model_max_length=parts["text_encoder"].config.max_position_embeddings)
        self.pipe = SimpleNamespace(**parts, components=parts, tokenizer=tokenizer, scheduler=scheduler)
        self.name, self.device, self.dtype = build.__name__, torch.device("cpu"), dtype
        self.build = build
        self.scheduler_config = dict(scheduler.config)
        self.latent_shape, self.image_shape = self._shapes()
        self.conditioning_shapes = self._conditioning_shapes()

    zero_unconditional = True
    prompt_readers: Mapping[str, int] = {}

    def _trainable(self, component: str, lora: LoRAConfig | None, groups: Groups) -> nn.Module:
        if lora is not None:
            return super()._trainable(component, lora, groups)  # type: ignore[misc]
        with _FAKE:  # a float32 copy; torch cannot convert tensors without values
            return self.build()[component].eval().requires_grad_(True)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return zeros."""
        return {name: torch.zeros(len(prompts), *shape) for name, shape in self.conditioning_shapes.items()}

    def encode_unconditional(self) -> Conditioning:
        """Return zeros."""
        return self.encode_prompts([""])


class _StableDiffusion(_WithoutValues, StableDiffusion):
    pass


class _StableDiffusionXL(_WithoutValues, StableDiffusionXL):
    pass


@dataclass(frozen=True)
class Published:
    """A published model: its hub id, how to build its networks, and its family without values."""

    hub: str
    build: Callable[[], dict[str, nn.Module]]
    family: Callable[..., Any]


MODELS = {
    "sd15": Published("stable-diffusion-v1-5/stable-diffusion-v1-5", stable_diffusion_15, _StableDiffusion),
    "sdxl": Published("stabilityai/stable-diffusion-xl-base-1.0", stable_diffusion_xl, _StableDiffusionXL),
}
ALL_WEIGHTS: Mapping[str, Any] = {"trainable": "full", "autocast": "bfloat16", "learning_rate": 1e-5}
#: Rows per forward pass, and whether activations are computed again in the backward pass.
Tried = tuple[int, bool]
_LARGE: Sequence[Tried] = ((8, True), (4, True), (2, True))
#: Names of the page's blocks -> the model, what is trained, and what is tried for a card, in this order.
BLOCKS: Mapping[str, tuple[str, Mapping[str, Any], Sequence[Tried]]] = {
    "sd15-lora": ("sd15", {}, ((16, False), (8, False), (4, False), (4, True))),
    "sdxl-lora": ("sdxl", {}, ((4, False), (16, True), (8, True), (4, True), (2, True))),
    "sd15-all-weights": ("sd15", ALL_WEIGHTS, _LARGE),
    "sdxl-all-weights": ("sdxl", ALL_WEIGHTS, _LARGE),
}
#: How settings are written on the command line.
OPTIONS = {"trainable": "--policy.trainable full", "autocast": "--policy.autocast bfloat16"}
OPTIONS |= {"learning_rate": "--learning-rate 1e-5"}


def estimate(model: Any, **settings: Any) -> int:
    """Return the bytes on a GPU that DDPO takes with the model's recommended settings and these."""

    def unmoved(self: DenoisingPolicy, device: torch.device) -> DenoisingPolicy:
        return self  # torch cannot move tensors without values

    def unchecked(*_: object) -> None: ...  # nor say whether they are finite

    with (
        mock.patch.object(DenoisingPolicy, "to", unmoved),
        mock.patch("diffusion_gym.models.images.check_finite", unchecked),
    ):
        algorithm = DDPO(gymnasium.make("DiffusionDenoise-v0", model=model), **settings)
        with _FAKE:
            found = estimate_memory(algorithm)
    # On a GPU prompts are in main memory, and an optimizer's step takes a copy of all weights.
    return found.total - found.prompts - found.unseen + max(0, found.trained - found.working)


def block(name: str) -> str:
    """Return a block of the page: a command for each card that has room for one."""
    of, settings, all_tried = BLOCKS[name]
    published = MODELS[of]
    model = published.family(published.build, "bfloat16")

    @functools.cache
    def size_of(rows: int, checkpointing: bool) -> int:
        return estimate(model, chunk_size=rows, gradient_checkpointing=checkpointing, **settings)

    lines: list[str] = []
    for card in CARDS:
        fitting = (tried for tried in all_tried if size_of(*tried) <= SHARE * card * 1e9)
        found = next(fitting, None)
        if found is None:
            lines.append(f"# {card} GB: too little")
            continue
        rows = [f"--policy.chunk-size {found[0]}", *(["--policy.gradient-checkpointing"] if found[1] else [])]
        parts = [" ".join(part) for part in ([OPTIONS[field] for field in settings], rows) if part]
        lines.append(f"# {card} GB: about {size_of(*found) / 1e9:.1f} GB by the estimate")
        lines.append(f"diffusion-gym train ddpo-is --model {published.hub} --dtype bfloat16 \\")
        lines.append("  " + " \\\n  ".join(parts))
    return "<!-- not run: needs the weights and a GPU -->\n```bash\n" + "\n".join(lines) + "\n```"


def main(check: bool) -> int:
    """Write the page's blocks anew, or with ``check`` say whether they are what they would be."""
    before = PAGE.read_text(encoding="utf-8")
    after = _BLOCK.sub(lambda match: f"{match[1]}\n{block(match['name'])}\n\n{match[4]}", before)
    if check and after != before:
        print(f"{PAGE} is not what is estimated; run: python docs/tools/graphics_cards.py")
        return 1
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
