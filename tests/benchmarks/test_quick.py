"""Help pages and mistakes come at once: nothing heavy is imported for them, and a mistake takes five lines at most."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[2]
#: Torch takes a second of processor time, timm two more; the others bring torch, or are large themselves.
HEAVY = ("torch", "torchvision", "timm", "diffusers", "transformers", "stable_baselines3", "vl_convert", "open_clip")
DDPO = ["train", "ddpo-is"]
HELPS = [["--help"], ["train", "--help"], [*DDPO, "--help"], ["compare", "--help"], ["sample", "--help"]]
HELPS += [["throughput", "--help"], ["report", "--help"], ["search", "--help"], ["tables", "--help"]]
HELPS += [["pretrain", "--help"], [*DDPO, "--model", "exact-mixture", "--help-all"]]
#: What is typed -> what is meant.
MISTAKES: list[tuple[list[str], str]] = [
    ([], "diffusion-gym needs a command"),
    (["trian"], "'train'"),
    (["TRAIN"], "'train'"),
    (["ddpo-is"], "'train ddpo-is'"),
    (["comapre", "--seeds", "0"], "'compare'"),
    (["--lr", "1"], "needs a command before --lr"),
    (["train"], "needs an algorithm"),
    (["train", "ddpo"], "'ddpo-is' or 'ddpo-sf'"),
    (["train", "DDPO-IS"], "'ddpo-is'"),
    (["train", "ddpo_sf"], "'ddpo-sf'"),
    (["train", "sparse_rwr"], "'sparse-rwr'"),
    (["train", "ppo"], "'sb3-ppo'"),
    (["train", "--reward", "compressibility"], "needs an algorithm before --reward"),
    ([*DDPO, "--lr", "1e-4"], "'--learning-rate'"),
    ([*DDPO, "--lr=1e-4"], "'--learning-rate'"),
    ([*DDPO, "--model", "exact-gaussian", "--lr=1e-4"], "'--learning-rate'"),
    ([*DDPO, "--reward-querys", "9"], "'--reward-queries'"),
    ([*DDPO, "--guidance_scale", "5"], "'--policy.guidance-scale'"),
    ([*DDPO, "--no-kl-to-strat"], "'--no-kl-to-start'"),
    ([*DDPO, "--policy.trainable", "lorra"], "'lora'"),
    ([*DDPO, "--wandb", "Offline"], "'offline'"),
    ([*DDPO, "--dtype", "fp16"], "must be one of float32, bfloat16, float16, got 'fp16'"),
    ([*DDPO, "--learning-rate", "fast"], "--learning-rate takes FLOAT"),
    ([*DDPO, "--seed"], "--seed needs a value"),
    ([*DDPO, "a\ncat"], r"has no use for 'a\\ncat'"),
    ([*DDPO, "--reward", "compressability"], "'compressibility'"),
    ([*DDPO, "--num-envs", "48"], "must divide --images-per-iteration"),
    ([*DDPO, "--prompts", "a cat"], "unknown prompt set 'a cat'"),
    ([*DDPO, "--prompts", "ten_animals"], "'ten-animals'"),
    ([*DDPO, "--metrics", "clip"], "'clip_score'"),
    (["compare", "--suite", "papr"], "'paper'"),
    (["compare", "--tasks", "compresibility"], "'compressibility'"),
    (["sample", "--promts", "cat"], "'--prompts'"),
    (["report"], "needs folder"),
]


def test_nothing_heavy_is_imported_for_help_and_mistakes() -> None:
    """In one fresh process for all of them: what one imports the next would have."""
    code = f"""
import sys
from benchmarks.__main__ import main
for words in {[*HELPS, *(words for words, _ in MISTAKES)]}:
    try:
        main(words)
    except SystemExit:
        pass
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[repr(" ".join(words)) for words, _ in MISTAKES])
def test_a_mistake_names_what_was_meant_in_five_lines(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert len(error.splitlines()) <= 5
