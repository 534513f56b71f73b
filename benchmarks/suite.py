"""What ``compare`` runs: tasks and the algorithms' settings for the embedded model. Adding one is a few lines."""

import dataclasses

from algorithms import ALGORITHMS, AlgorithmConfig, EvaluationConfig, PolicyConfig
from algorithms.config import override
from benchmarks.settings import RunSpec, TaskConfig
from diffusion_gym.models import LoRAConfig

#: Ten prompts, so that RWR, which compares images of one prompt, has enough of each (FIELD.md's fair baseline).
PROMPTS = "ten-animals"
_ACTIVITIES = "animals-activities"
#: Name (the reward's) -> task. Alignment is trained on two thirds of the activity prompts, as the paper does on prompts
#: with activities, and evaluated on the others too.
TASKS: dict[str, TaskConfig] = {
    "compressibility": TaskConfig(reward="compressibility", prompts=PROMPTS, metrics=("recognised", "diversity")),
    "incompressibility": TaskConfig(reward="incompressibility", prompts=PROMPTS, metrics=("recognised", "diversity")),
    "aesthetic": TaskConfig(reward="aesthetic", prompts=PROMPTS, metrics=("clip_score", "recognised", "diversity")),
    "clip_score": TaskConfig(reward="clip_score", prompts=PROMPTS, metrics=("recognised", "diversity")),
    "vlm_alignment": TaskConfig(
        reward="vlm_alignment", prompts=f"{_ACTIVITIES}@train", metrics=("clip_score", "recognised", "diversity")
    ),
}
#: What ``compare`` runs unless it is told otherwise: in minutes, and without a reward model.
COMPARED = ("compressibility", "incompressibility")
HELD_OUT_PROMPTS = {"vlm_alignment": f"{_ACTIVITIES}@held-out"}

#: Adapters on every layer: the embedded UNet has attention only at 4 x 4, so adapters on attention alone hardly move
#: it, and all weights together follow the noise of the policy gradient as readily as its signal.
POLICY = PolicyConfig(trainable="lora", lora=LoRAConfig(rank=4, alpha=4.0, targets=("all",)), chunk_size=32)
_EVALUATION = EvaluationConfig(images=64)
_QUERIES_PER_EVALUATION = 256

#: Each algorithm's settings on the embedded model: the candidate that ``search`` ranked first, among the same number
#: for each algorithm, on a seed that is not reported: by the gains after 1,024 queries on both tasks and after 2,048 on
#: compressibility, where a learning rate can be too high for what follows saturation (docs/results.md). Fields not
#: named here have the algorithm's defaults.
SETTINGS: dict[str, dict[str, object]] = {
    "ddpo-is": {
        "images_per_iteration": 64,
        "num_envs": 32,
        "updates_per_iteration": 2,
        "learning_rate": 2e-3,
        "statistics_buffer": 16,
        "statistics_min_count": 4,
    },
    "ddpo-sf": {
        "images_per_iteration": 64,
        "num_envs": 32,
        "learning_rate": 3e-3,
        "statistics_buffer": 16,
        "statistics_min_count": 4,
    },
    "rwr": {
        "images_per_iteration": 128,
        "num_envs": 32,
        "images_per_prompt": 16,
        "updates_per_iteration": 10,
        "learning_rate": 1e-3,
        "beta": 0.2,
    },
    "sparse-rwr": {
        "images_per_iteration": 128,
        "num_envs": 32,
        "images_per_prompt": 16,
        "updates_per_iteration": 10,
        "learning_rate": 1e-3,
        "top_fraction": 0.1,
    },
}


def settings(algorithm: str, seed: int, **changes: object) -> AlgorithmConfig:
    """Return an algorithm's configuration for the embedded model, evaluated every 256 queries or each iteration."""
    chosen = {**SETTINGS[algorithm], **changes}
    config = override(ALGORITHMS[algorithm].config, seed=seed, policy=POLICY, **chosen)
    every = max(1, _QUERIES_PER_EVALUATION // config.images_per_iteration)
    return dataclasses.replace(config, evaluation=dataclasses.replace(_EVALUATION, every=every))


def run_spec(task: str, algorithm: str, seed: int, reward_queries: int, **changes: object) -> RunSpec:
    """Return one run of the suite."""
    config = settings(algorithm, seed, **changes)
    evaluation = dataclasses.replace(config.evaluation, held_out_prompts=HELD_OUT_PROMPTS.get(task))
    return RunSpec(algorithm, dataclasses.replace(config, evaluation=evaluation), TASKS[task], reward_queries)


#: What ``--quick`` changes: two small iterations, with every part of the algorithm in them.
_QUICK: dict[str, dict[str, object]] = {
    "rwr": {"updates_per_iteration": 2, "batch_size": 32},
    "sparse-rwr": {"updates_per_iteration": 2, "batch_size": 32},
}


def quick_spec(task: str, algorithm: str, seed: int) -> RunSpec:
    """Return a run that shows that everything works: 2 iterations of 32 images, 16 images an evaluation."""
    changes = _QUICK.get(algorithm, {})
    spec = run_spec(task, algorithm, seed, 64, images_per_iteration=32, num_envs=32, **changes)
    evaluation = dataclasses.replace(spec.config.evaluation, images=16, every=1)
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, evaluation=evaluation))
