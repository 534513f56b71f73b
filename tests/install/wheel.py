"""Builds the wheel and uses it as a stranger does: fresh virtual environment, empty directory, torchrl beside it.

torchrl puts files of its own under ``site-packages/benchmarks``, where ours lie too. Run by ``make wheel-test``; needs
a package index, and takes a few minutes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WANTED = (
    "diffusion_gym_command.py",
    "diffusion_gym_torchvision.py",
    "diffusion_gym/py.typed",
    "algorithms/py.typed",
    "benchmarks/py.typed",
    "benchmarks/report/templates/page.html",
    "benchmarks/report/templates/report.js",
    "benchmarks/runs/model_card.md.jinja",
    "benchmarks/assets/judge.safetensors",
    "diffusion_gym/assets/emoji-world/detector/model.safetensors",
    "diffusion_gym/assets/emoji-world/judge/model.safetensors",
    "diffusion_gym/assets/emoji-world/prompts/train.jsonl",
)
EPISODE = """
import sys
import gymnasium
import torch  # what may be loaded without us
import diffusion_gym

heavy = {"diffusers", "transformers", "stable_baselines3", "open_clip", "peft", "vl_convert"} & set(sys.modules)
assert not heavy, heavy
env = gymnasium.make("DiffusionDenoise-v0")
observation, info = env.reset(seed=0)
steps, terminated = 0, False
while not terminated:
    observation, reward, terminated, truncated, info = env.step(observation["latent"])
    steps += 1
assert steps == 10 and reward < 0 and info["image"].shape == (64, 64, 3), (steps, reward, info["image"].shape)
import torchrl, benchmarks
assert torchrl.__version__
print(f"one episode of {steps} steps, reward {reward:.3f}; packages from {benchmarks.__path__[0]}")
"""


def build(folder: Path) -> Path:
    """Build the wheel from what git tracks or would track, and check what is in it."""
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source], check=True, cwd=folder
    )
    (wheel,) = folder.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assets = {str(file.relative_to(source).as_posix()) for file in (source / "diffusion_gym/assets").rglob("*.*")}
    missing = sorted((set(WANTED) | assets) - names)
    assert not missing, f"the wheel lacks {missing}"
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    ours = {"diffusion_gym", "diffusion_gym_command.py", "diffusion_gym_torchvision.py", "algorithms", "benchmarks"}
    assert tops == ours, f"the wheel also holds {sorted(tops)}"
    return wheel


def main() -> None:
    """Build, install, run; any failure ends the process with an error."""
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="wheel-test-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        wheel = build(folder)
        say(f"built {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python, command = scripts / "python", scripts / "diffusion-gym"
        empty = folder / "empty"
        empty.mkdir()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}

        def run(*words: str | Path) -> str:
            done = subprocess.run(
                list(words), cwd=empty, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert done.returncode == 0, f"{' '.join(map(str, words))}: exit status {done.returncode}\n{done.stdout}"
            return done.stdout

        def pip(*words: str | Path) -> None:
            run(python, "-m", "pip", "install", "-qq", "--constraint", ROOT / "constraints.txt", *words)

        pip("torchrl", wheel)
        pip("--force-reinstall", "--no-deps", wheel)
        assert "compare" in run(command, "--help"), "ours installed last"
        pip("--force-reinstall", "--no-deps", "torchrl")
        assert "compare" in run(command, "--help"), "torchrl installed last"
        theirs = next((folder / "venv").rglob("site-packages/benchmarks/bench_collectors.py"), None)
        assert theirs is not None, "torchrl no longer puts files under benchmarks: this test has lost its point"
        say("installed beside torchrl, in both orders")
        say(run(python, "-c", EPISODE).strip())
        output = run(command, "compare", "--quick")
        first_table = output.split("\nOne seed: ")[0]
        rows = [line for line in first_table.splitlines() if line.startswith(("| geneval |", "| compressibility |"))]
        assert len(rows) == 10, output  # two tasks of five algorithms
        assert (empty / "runs" / "compare-quick" / "report.html").is_file()
        say("diffusion-gym compare --quick:\n" + "\n".join(rows))
        run(command, "sample", "--run", "runs/compare-quick/compressibility/rwr/seed-0", "--prompts", "cat")
        assert (empty / "samples.png").is_file()
        run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchrl")
        assert "compare" in run(command, "--help"), "torchrl uninstalled again"
        say("the wheel works")


if __name__ == "__main__":
    main()
