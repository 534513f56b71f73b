"""Stable Diffusion 1.5 at its true size, with random weights, through the command line: the estimate is the peak."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.gpu_report.published import stable_diffusion_15
from tests.builders.pipelines import _save_sd, sd_scheduler
from tests.builders.tokenizers import TOKENS, write_clip_tokenizer

pytestmark = pytest.mark.long
_NEEDED = 14e9
_SMALL = ["--images-per-iteration", "2", "--num-envs", "2", "--updates-per-iteration", "1", "--reward-queries", "2"]


def build_sd15(folder: Path) -> None:
    """Save the published configuration with random weights; its text encoder reads a tiny vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    parts = stable_diffusion_15()
    write_clip_tokenizer(folder / "vocabulary")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=TOKENS)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(**{**parts["text_encoder"].config.to_dict(), **sizes, **tokens})
    _save_sd(folder, parts["unet"], parts["vae"], (tokenizer, CLIPTextModel(config)), sd_scheduler())


def peak_of(folder: Path, *words: str) -> tuple[float, str]:
    """Return the peak memory in bytes of the largest child process until now, and what this one printed."""
    command = [sys.executable, "-m", "benchmarks", "train", "ddpo-is", *_SMALL, "--num-inference-steps", "2"]
    ran = subprocess.run([*command, *words, "--folder", str(folder)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * scale, ran.stdout


@pytest.mark.skipif(psutil.virtual_memory().available < _NEEDED, reason="needs 14 GB of free memory")
def test_the_estimate_is_the_peak_of_stable_diffusion_15(tmp_path: Path) -> None:
    """Within 15 %, without what Python and its libraries hold, which a run on points in the plane shows."""
    exact = ["--model", "exact-mixture", "--reward", "exact-linear", "--policy.trainable", "full"]
    libraries, _ = peak_of(tmp_path / "exact", *exact)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build_sd15(tmp_path / "model")
    settings = ["--model", str(tmp_path / "model"), "--policy.guidance-scale", "1", "--policy.chunk-size", "2"]
    peak, printed = peak_of(tmp_path / "run", *settings, "--policy.trainable", "lora")
    found = re.search(r"estimated: ([\d.]+) GB", printed)
    assert found, printed
    assert 1e9 * float(found[1]) == pytest.approx(peak - libraries, rel=0.15)
