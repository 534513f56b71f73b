"""What every test shares: one torch thread, the repair of torchvision, and a tiny genuine Stable Diffusion pipeline."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before NumPy and torch, and for the processes that tests start: one thread, or all workers' threads would share the
# cores; and where a test wants two, they sleep while they wait, for on a busy machine spinning takes ten times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# --device auto would take a GPU, on which the tests' sums come out otherwise; name the GPUs to test on them.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Stable-Baselines3 makes a folder for every logger, even one that only prints: thousands per run of the tests.
os.environ.setdefault("SB3_LOGDIR", os.path.join(tempfile.gettempdir(), "diffusion-gym-tests"))  # noqa: PTH118

import pytest
import torch

from algorithms import DiffusionAlgorithm
from algorithms.sampling import collect
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym_torchvision import repair_torchvision
from tests.builders import pipelines, reward_models
from tests.builders.chat_server import ChatServer

repair_torchvision()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bit equality is promised for one number of threads; one is also quickest on networks this small."""
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist hand out files in their order here, not the one with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a browser or the built site, or takes minutes, unless ``-m`` names it; long files first.

    Any other ``-m`` means what it says. Files whose tests are marked slow begin, so that none of them is what all
    workers but one wait for at the end.
    """
    apart = [marker for marker in ("browser", "docs", "long") if marker not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in apart)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def disturb() -> Callable[[DiffusionAlgorithm[Any]], None]:
    """``disturb(algorithm)``: start adapters at a nonzero update, so that one left out somewhere would show."""

    def change(algorithm: DiffusionAlgorithm[Any], by: float = 0.02) -> None:
        source = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in algorithm.policy.trainable_parameters().values():
                value.add_(by * torch.randn(value.shape, generator=source))

    return change


@pytest.fixture(scope="session")
def largest_log_ratios(disturb: Callable) -> Callable[..., dict[tuple[int, int], float]]:
    """``largest_log_ratios(ddpo)``: largest |joint log-ratio| of a first update, by chunk size and threads.

    Four images more than a chunk holds, so that the last chunk is smaller: 16 and 4, or 3, 3 and 1.
    """

    def measure(
        algorithm: DiffusionAlgorithm[Any], cases: Sequence[tuple[int, int]] = ((16, 1), (3, 1))
    ) -> dict[tuple[int, int], float]:
        disturb(algorithm)
        mdp, found, threads = algorithm.mdp, {}, torch.get_num_threads()
        try:
            for size, number in cases:
                env = DenoiseVectorEnv.sharing(mdp, size + 4)
                prompts = [mdp.prompts[i % len(mdp.prompts)] for i in range(size + 4)]
                algorithm.policy.chunk_size = size
                torch.set_num_threads(number)
                metrics = algorithm.update(collect(env, algorithm.policy, prompts, seed=size))
                found[size, number] = metrics["train/log_ratio_abs_max"]
        finally:
            torch.set_num_threads(threads)
        return found

    return measure


@pytest.fixture(scope="session", autouse=True)
def models_are_kept() -> Iterator[None]:
    """Keep what tests load until the session ends: each tiny model is then loaded once, and not once a test."""
    from diffusion_gym import models

    ordinary, models._loaded = models._loaded, {}
    yield
    models._loaded = ordinary


@pytest.fixture(scope="session")
def build_tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from prediction type to the folder of a tiny pipeline; each is built once a session."""
    built: dict[str, str] = {}

    def build(prediction_type: str = "epsilon") -> str:
        if prediction_type not in built:
            folder = tmp_path_factory.mktemp(f"tiny-sd-{prediction_type}")
            pipelines.build_tiny_sd(folder, prediction_type)
            built[prediction_type] = str(folder)
        return built[prediction_type]

    return build


@pytest.fixture(scope="session")
def tiny_sd(build_tiny_sd: Callable[[str], str]) -> str:
    """Return the folder of a tiny StableDiffusionPipeline (epsilon), for ``model=``."""
    return build_tiny_sd("epsilon")


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def tiny_sd_each(request: pytest.FixtureRequest, build_tiny_sd: Callable[[str], str]) -> str:
    """Return the folder of a tiny pipeline for each prediction type."""
    return build_tiny_sd(request.param)


EXACT: dict[str, Any] = {
    "model": "exact-mixture",
    "reward": "exact-linear",
    "prompts": ["north", "east", "south", "west"],
    "num_inference_steps": 3,
}
"""Arguments of ``make`` for an environment that is ready in milliseconds and rewards points in the plane."""


@pytest.fixture
def exact() -> dict[str, Any]:
    """Return arguments of ``make``: the exact mixture, four prompts, three steps."""
    return dict(EXACT)


@pytest.fixture(params=["exact", "exact-flow", "tiny-sd"])
def each_model(request: pytest.FixtureRequest, tiny_sd: str) -> dict[str, Any]:
    """Return arguments of ``make`` for the exact mixture, the same as a flow, and for a real diffusers pipeline."""
    if request.param == "exact":
        return dict(EXACT)
    if request.param == "exact-flow":
        return {**EXACT, "model": "exact-flow-mixture"}
    return {
        "model": tiny_sd,
        "reward": "compressibility",
        "prompts": ["cat", "dog", "ant", "fish"],
        "num_inference_steps": 3,
    }


@pytest.fixture(scope="session")
def tiny_reward_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like the embedded reward models': clip, aesthetic, captioner, bert; seeded random weights."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-reward-models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reward_models.build_clip(folder / "clip")
        reward_models.build_bert(folder / "bert")
        reward_models.build_captioner(folder / "captioner")
        (folder / "aesthetic").mkdir()
        save_file(reward_models.head_tensors((12, 16, 8, 8, 4, 1)), folder / "aesthetic" / "head.safetensors")
    return folder


@pytest.fixture
def tiny_rewards(tiny_reward_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let ``aesthetic``, ``clip_score`` and ``vlm_alignment`` find the tiny models where they look for the embedded."""
    from diffusion_gym.rewards.models import weights

    monkeypatch.setattr(weights, "EMBEDDED", tiny_reward_models)
    return tiny_reward_models


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ChatServer]]:
    """Return a function that starts a :class:`ChatServer`; all are stopped after the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started: list[ChatServer] = []

    def start(port: int = 0) -> ChatServer:
        started.append(ChatServer(port))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def comparison(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished comparison: two algorithms, two seeds, three evaluations of twenty pictures. To be copied."""
    from algorithms import ALGORITHMS, EvaluationConfig
    from algorithms.config.base import override
    from benchmarks.analysis.results import Results, write_results
    from benchmarks.provenance import provenance
    from benchmarks.runs.run import read_run, run
    from benchmarks.runs.spec import RunSpec, TaskConfig

    folder = tmp_path_factory.mktemp("comparison")
    unseen = tmp_path_factory.mktemp("prompts") / "unseen.txt"
    unseen.write_text("fox\nwolf\n", encoding="utf-8")
    task = TaskConfig(tiny_sd, "compressibility", "ten-animals", num_inference_steps=2, metrics=("diversity",))
    changes = {"images_per_iteration": 8, "num_envs": 8, "images_per_prompt": 8, "chunk_size": 8}
    changes |= {"updates_per_iteration": 1, "learning_rate": 0.03}
    changes |= {"evaluation": EvaluationConfig(images=20, held_out_prompts=str(unseen))}
    runs = []
    for seed in (0, 1):
        for name in ("ddpo-is", "rwr"):
            config = override(ALGORITHMS[name].config, seed=seed, **changes)
            run_folder = folder / "compressibility" / name / f"seed-{seed}"
            run(RunSpec(name, config, task, 16), run_folder)
            runs.append(read_run(run_folder, folder))
    write_results(Results(runs, provenance()), folder / "results.json")
    return folder
