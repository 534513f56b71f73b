"""The tasks: model, reward, prompts, what is measured beside the reward, held-out prompts, and the budget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.runs.gold_judge import KINDS
from benchmarks.runs.spec import TaskConfig
from diffusion_gym.choices import EMOJI_WORLD
from diffusion_gym.recommended import recommended_for

#: Ten prompts, so that RWR, which compares images of the same prompt, has enough images of each.
PROMPTS = "ten-animals"


@dataclass(frozen=True)
class Task:
    """A model, a reward, what is measured beside it, and a budget."""

    config: TaskConfig
    """Model, reward, prompts, denoising steps, and the metrics measured beside the reward."""
    held_out_prompts: str | None = None
    """Prompts that are evaluated separately and never trained on; None for none."""
    reward_queries: int = 2048
    """The budget of each run, the same for every algorithm."""
    evaluation_images: int | None = None
    """Images per evaluation, and as many on held-out prompts; None is the recipe's."""
    ranked_by: str | None = None
    """The metric whose gain ``search`` ranks by; None is the reward."""
    beside: str = "recognised"
    """The metric whose end ``search`` shows beside the gains."""


def _embedded(reward: str, prompts: str, *metrics: str) -> TaskConfig:
    return TaskConfig(reward=reward, prompts=prompts, device="cpu", metrics=metrics)


#: ``compare --suite jpeg``: rewards that need no second model.
TASKS: dict[str, Task] = {
    reward: Task(_embedded(reward, PROMPTS, "recognised", "diversity"))
    for reward in ("compressibility", "incompressibility")
}

#: Prompts that can be checked, on the embedded model that often gets them wrong; the gold judge is a metric alone.
#: Search ranks by it, on the prompts that are trained on: the held-out ones are for what is reported. No evaluation
#: shows a prompt twice, so diversity is not measured.
GENEVAL_TASK = Task(
    TaskConfig(
        model=EMOJI_WORLD,
        reward="geneval",
        prompts=EMOJI_WORLD,
        num_inference_steps=recommended_for(EMOJI_WORLD).num_inference_steps,
        device="cpu",
        metrics=("judge", *(f"judge-{kind}" for kind in KINDS)),
    ),
    held_out_prompts=f"{EMOJI_WORLD}-held-out",
    ranked_by="judge",
    beside="judge-position",
)
#: Plain ``compare``.
DEFAULT_TASKS = {
    "geneval": replace(GENEVAL_TASK, evaluation_images=96, reward_queries=2560),
    "compressibility": replace(TASKS["compressibility"], reward_queries=640),
}
#: ``compare --suite quick``.
QUICK_TASKS = {
    "geneval": replace(GENEVAL_TASK, evaluation_images=12, reward_queries=64),
    "compressibility": replace(TASKS["compressibility"], reward_queries=64),
}
_WHOLE_GENEVAL = replace(
    GENEVAL_TASK,
    config=replace(GENEVAL_TASK.config, metrics=(*GENEVAL_TASK.config.metrics, "sharpness")),
    evaluation_images=125,
)
#: ``--suite composition``: with each held-out prompt in every evaluation.
COMPOSITION_TASKS = {"geneval": replace(_WHOLE_GENEVAL, reward_queries=2048)}
#: ``--suite follow``: the main job, for as long as it gains on held-out prompts.
FOLLOW_TASKS = {"geneval": replace(_WHOLE_GENEVAL, reward_queries=6144)}

#: Diversity compares pictures of one prompt, so it is left out if an evaluation shows each prompt at most once.
_MEASURED = ("clip_score", "recognised", "diversity")
#: ``--suite paper``: the paper's four tasks (Black et al. 2023, section 5) on the embedded model, each with prompts
#: that are not trained on: the other 35 of the paper's 45 animals, and a third of its activities.
PAPER_TASKS: dict[str, Task] = {
    "compressibility": Task(_embedded("compressibility", PROMPTS, *_MEASURED), "other-animals"),
    "incompressibility": Task(_embedded("incompressibility", PROMPTS, *_MEASURED), "other-animals"),
    "aesthetic": Task(_embedded("aesthetic", PROMPTS, *_MEASURED), "other-animals"),
    "vlm_alignment": Task(
        _embedded("vlm_alignment", "animals-activities@train", *_MEASURED[:2]),
        "animals-activities@held-out",
        evaluation_images=90,  # each prompt once: one picture in ten is wrong, and few of them would be too coarse
    ),
}

#: ``--suite presets``: two of the paper's tasks, on half its budget.
PRESETS_TASKS = {name: replace(PAPER_TASKS[name], reward_queries=1024) for name in ("incompressibility", "aesthetic")}

#: ``--suite learned-rewards``: the rewards that are models themselves. Alignment is tuned on two thirds of the activity
#: prompts; nine of ten pictures earn the whole reward from the start, so its budget is twice as large.
LEARNED_TASKS: dict[str, Task] = {
    "aesthetic": Task(_embedded("aesthetic", PROMPTS, *_MEASURED)),
    "clip_score": Task(_embedded("clip_score", PROMPTS, *_MEASURED[1:])),
    "vlm_alignment": Task(
        _embedded("vlm_alignment", "animals-activities@train", *_MEASURED[:2]), "animals-activities@held-out", 4096
    ),
}


def _stable_diffusion(reward: str, prompts: str, *metrics: str) -> Task:
    config = TaskConfig(
        model="CompVis/stable-diffusion-v1-4",
        reward=reward,
        prompts=prompts,
        num_inference_steps=50,
        device="cuda",
        metrics=("clip_score?clip=ViT-L-14/openai", *metrics),
    )
    return Task(config, reward_queries=50_000)


#: ``--suite paper-sd``: the same four as in the paper; built on access, because checking their rewards' options imports
#: torch.
STABLE_DIFFUSION_TASKS: Mapping[str, Callable[[], Task]] = {
    "compressibility": partial(_stable_diffusion, "compressibility", "imagenet-animals"),
    "incompressibility": partial(_stable_diffusion, "incompressibility", "imagenet-animals"),
    "aesthetic": partial(
        _stable_diffusion,
        "aesthetic?clip=ViT-L-14/openai&head=sac+logos+ava1-l14-linearMSE.pth",
        "animals",
        "diversity",
    ),
    "vlm_alignment": partial(
        _stable_diffusion,
        "vlm_alignment?model=llava-hf/llava-1.5-7b-hf&bert=microsoft/deberta-xlarge-mnli&dtype=bfloat16",
        "animals-activities",
    ),
}


def _exact(model: str, reward: str, beta: float, *more: str) -> Task:
    measured = ("exact-excess-kl", "exact-kl-from-start", *(f"{name}?beta={beta}" for name in more))
    return Task(TaskConfig(model=model, reward=reward, device="cpu", metrics=measured))


#: ``--suite exact``: Gaussians and mixtures whose best distributions are known. Each beta puts the target at a reward
#: that is reached well within the budget.
EXACT_TASKS: dict[str, Task] = {
    "gaussian-linear": _exact("exact-gaussian", "exact-linear", 0.5, "exact-target-kl", "exact-mean-error"),
    "gaussian-quadratic": _exact("exact-gaussian", "exact-quadratic", 1.0, "exact-target-kl", "exact-mean-error"),
    "mixture-linear": _exact(
        "exact-mixture", "exact-linear", 1.0, "exact-target-kl", "exact-mean-error", "exact-mode-weight-error"
    ),
}

#: ``--suite ladder``: two of the paper's tasks on half its budget, without held-out prompts; and a mixture.
LADDER_TASKS: dict[str, Task] = {
    name: Task(_embedded(name, PROMPTS, "recognised"), reward_queries=1024)
    for name in ("incompressibility", "aesthetic")
}
LADDER_EXACT_TASKS = {"mixture-linear": replace(EXACT_TASKS["mixture-linear"], reward_queries=1024)}
