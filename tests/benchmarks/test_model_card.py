"""The model card: its front matter, what it says of the run, and its code, which is run as it stands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from algorithms import DDPOConfig, EvaluationConfig, PolicyConfig, RWRConfig
from algorithms.config.base import override
from benchmarks.runs.model_card import _public
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec, TaskConfig

SMALL = {"num_envs": 4, "images_per_iteration": 4, "chunk_size": 4, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def trained(folder: Path, model: str, config: Any = None, **policy: Any) -> Path:
    """A run of two iterations; returns the folder of its weights."""
    base = config or DDPOConfig(updates_per_iteration=1, evaluation=EvaluationConfig(images=4))
    config = override(base, **SMALL, policy=PolicyConfig(chunk_size=4, **policy))
    name = "rwr" if isinstance(config, RWRConfig) else "ddpo-is"
    run(RunSpec(name, config, TaskConfig(model=model, num_inference_steps=2), 8), folder)
    return folder / "pipeline" if (folder / "pipeline").is_dir() else folder


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def run_code(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Run the card's only block, in its folder, with torch's generator seeded; return the picture it saves."""
    (code,) = re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    return np.asarray(Image.open(folder / "tuned.png"))


@pytest.mark.parametrize(
    "policy",
    [
        {"trainable": "lora"},
        {"trainable": "full"},
        {"trainable": "lora", "train": "both", "guidance_scale": 3.0},
        {"trainable": "lora", "sampler": "ddpm"},
        {"trainable": "lora", "eta": (1.0, 0.0)},
    ],
    ids=str,
)
def test_a_card_and_its_code(
    tmp_path: Path, tiny_sd: str, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    """The picture that the code draws is of the tuned model: from the same noise the base model's is another."""
    folder = trained(tmp_path / "run", tiny_sd, **policy)
    front, body = read_card(folder)
    base = Path(tiny_sd).name
    assert front["base_model"] == base
    assert front["library_name"] == "diffusers"
    assert front["pipeline_tag"] == "text-to-image"
    kind = "full-weights" if policy["trainable"] == "full" else "lora"
    assert {"diffusion-gym", "reinforcement-learning", "ddpo-is", kind} <= set(front["tags"])
    assert str(tmp_path) not in body
    assert tiny_sd not in body
    eta = " ".join(f"{level:g}" for level in policy["eta"]) if "eta" in policy else "1"
    for said in (
        f"eta {eta}, ",
        "compressibility",
        "8 reward queries, 2 iterations",
        "| seed | 0 |",
        "2 steps",
        "torch ",
    ):
        assert said in body
    assert re.search(r"reward -?\d+\.\d+ ± \d+\.\d+ before and -?\d+\.\d+ ± \d+\.\d+ after 2 iterations", body)
    assert Image.open(folder / "curve.png").width > 500
    (folder / base).symlink_to(tiny_sd)  # the reader has the base model's folder under its name
    tuned = run_code(body, folder, monkeypatch)
    plain = re.sub(r"pipe.load_lora.*", "", body).replace('    ".",', f'    "{base}",')
    untuned = run_code(plain, folder, monkeypatch)
    assert tuned.shape == (16, 16, 3)
    assert (tuned != untuned).any()


def test_the_embedded_models_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found where the package lies; without evaluations the card says so."""
    config = RWRConfig(images_per_prompt=4, updates_per_iteration=1, batch_size=4)
    folder = trained(tmp_path / "run", "emoji-animals", config)
    front, body = read_card(folder)
    assert front["base_model"] == "emoji-animals"
    assert "The run made no evaluations" in body
    assert run_code(body, folder, monkeypatch).shape == (64, 64, 3)


def test_the_exact_family_has_none(tmp_path: Path) -> None:
    """diffusers does not load it, so a card would promise too much."""
    task = TaskConfig(model="exact-gaussian", reward="exact-linear", num_inference_steps=2)
    config = override(DDPOConfig(updates_per_iteration=1), **SMALL, trainable="full")
    run(RunSpec("ddpo-is", config, task, 4), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("README.md"))


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/models/sd", "sd"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("aesthetic:0.5,/home/me/mine.py:score:2", "aesthetic:0.5,mine.py:score:2"),
        ("rewards/mine.py:score", "rewards/mine.py:score"),
    ],
)
def test_no_path_of_a_machine(text: str, public: str) -> None:
    assert _public(text) == public


def test_pixel_models_are_loaded_by_their_own_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_ddpm: Callable[[], str]
) -> None:
    """No prompt, no guidance, a whole pipeline even for adapters, which are merged into it."""
    folder = trained(tmp_path / "run", build_ddpm(), trainable="full")
    front, body = read_card(folder)
    assert front["pipeline_tag"] == "unconditional-image-generation"
    assert "DDIMPipeline" in body
    assert run_code(body, folder, monkeypatch).shape == (16, 16, 3)


@pytest.fixture
def build_ddpm(tmp_path: Path) -> Callable[[], str]:
    """Return the folder of a tiny DDPMPipeline."""

    def build() -> str:
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = UNet2DModel(
                sample_size=16, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
                down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
            )  # fmt: skip
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
        return str(tmp_path / "ddpm")

    return build
