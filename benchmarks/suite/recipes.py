"""The recipes: for each kind of model, what is trained, with which settings, and how often it is evaluated."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace

from algorithms import ALGORITHMS, AlgorithmConfig, EvaluationConfig, PolicyConfig
from algorithms.config.base import override
from benchmarks.runs.spec import RunSpec
from benchmarks.suite.tasks import Task
from diffusion_gym.choices import EMOJI_WORLD, LoRAConfig
from diffusion_gym.recommended import recommended_for

#: Adapters on every layer: the embedded UNet has attention only at 4 x 4, so adapters on attention alone hardly change
#: it, and training all weights fits the noise of the policy gradient as easily as its signal.
POLICY = PolicyConfig(
    sampler="ddim", trainable="lora", lora=LoRAConfig(rank=4, alpha=4.0, targets=("all",)), chunk_size=32
)

_DDPO = {"images_per_iteration": 64, "num_envs": 32, "statistics_buffer": 16, "statistics_min_count": 4}
_RWR = {"images_per_iteration": 128, "num_envs": 32, "images_per_prompt": 16, "updates_per_iteration": 10}

#: Each algorithm's settings on the embedded model: the candidate that ``search`` ranked first, of the same number for
#: each algorithm, on a seed that is not reported: by the gains after 1,024 queries on both tasks and after 2,048 on
#: compressibility, where a learning rate can be too high after saturation (docs/results.md). Other fields have the
#: algorithm's defaults.
SETTINGS: dict[str, dict[str, object]] = {
    "ddpo-is": {**_DDPO, "updates_per_iteration": 2, "learning_rate": 2e-3},
    "ddpo-sf": {**_DDPO, "learning_rate": 3e-3},
    "rwr": {**_RWR, "learning_rate": 1e-3, "beta": 0.2},
    "sparse-rwr": {**_RWR, "learning_rate": 1e-3, "top_fraction": 0.1},
}


@dataclass(frozen=True)
class Recipe:
    """How every run of a suite is trained and evaluated."""

    policy: PolicyConfig
    """What is trained, and how it samples."""
    settings: Mapping[str, Mapping[str, object]]
    """Algorithm -> fields of its configuration that differ from its defaults."""
    evaluation_images: int = 64
    """Images per evaluation, and as many on held-out prompts, if the task does not say."""
    queries_per_evaluation: int = 256
    """Reward queries from one evaluation to the next; at least one iteration's."""

    def config(self, algorithm: str, seed: int, **changes: object) -> AlgorithmConfig:
        """Return an algorithm's configuration; ``changes`` are further fields, also of the policy, that differ."""
        chosen: dict[str, object] = {**self.settings[algorithm], **changes}
        policy = {name: chosen.pop(name) for name in list(chosen) if name in _POLICY_FIELDS}
        config = override(ALGORITHMS[algorithm].config, seed=seed, policy=override(self.policy, **policy), **chosen)
        every = max(1, self.queries_per_evaluation // config.images_per_iteration)
        return dataclasses.replace(config, evaluation=EvaluationConfig(images=self.evaluation_images, every=every))

    def spec(self, task: Task, algorithm: str, seed: int, **changes: object) -> RunSpec:
        """Return one run of an algorithm on a task."""
        config = self.config(algorithm, seed, **changes)
        images = task.evaluation_images or config.evaluation.images
        evaluation = dataclasses.replace(config.evaluation, images=images, held_out_prompts=task.held_out_prompts)
        config = dataclasses.replace(config, evaluation=evaluation)
        return RunSpec(algorithm, config, task.config, task.reward_queries)


_POLICY_FIELDS = {field.name for field in dataclasses.fields(PolicyConfig)}

#: Stable-Baselines3's PPO, without a search: as many updates and transitions per update as DDPO-IS, one pass over a
#: rollout, and so about as many forwards (it also trains rows of the steps without a density, to no effect).
_PPO = {"n_epochs": 1, "batch_size": 320}

EMBEDDED = Recipe(
    POLICY, {**SETTINGS, "sb3-ppo": {**_PPO, "images_per_iteration": 64, "num_envs": 32, "learning_rate": 2e-3}}
)
#: ``--suite leash``: enough evaluations to compare two runs at equal reward.
LEASHED = Recipe(POLICY, SETTINGS, queries_per_evaluation=128)


def _with(changes: Mapping[str, Mapping[str, object]], **common: object) -> dict[str, dict[str, object]]:
    return {name: {**SETTINGS[name], **common, **changes.get(name, {})} for name in SETTINGS}


#: ``--suite paper``: every algorithm with the candidate that the search of six and more ranks first; evaluated every 64
#: queries, or after each iteration if that is less often, on as many images as are sampled at once; and the KL to the
#: starting model is measured, for the frontiers.
PAPER = Recipe(
    POLICY,
    _with(
        {
            "ddpo-is": {"updates_per_iteration": 4, "learning_rate": 3e-3},
            "ddpo-sf": {"images_per_iteration": 32},
            "rwr": {"images_per_iteration": 64, "updates_per_iteration": 5, "learning_rate": 3e-3},
            "sparse-rwr": {"learning_rate": 2e-3},
        },
        kl_to_start=True,
    ),
    evaluation_images=32,
    queries_per_evaluation=64,
)

#: Younger algorithms on the embedded model, one recipe for all tasks. Groups of eight; noise in trained steps alone.
_IN_GROUPS = {"images_per_iteration": 64, "num_envs": 32, "images_per_prompt": 8, "advantages": "group", "eta": 0.0}
_NO_ANCHOR = {"surrogate": "regression", "anchor_old": 0.0, "anchor_start": 0.0, "old_decay": 0.0}
YOUNGER: dict[str, dict[str, object]] = {
    "branched": {**_IN_GROUPS, "images_per_iteration": 32, "updates_per_iteration": 1, "learning_rate": 4e-3},
    "awm": {**_IN_GROUPS, **_NO_ANCHOR, "draws_per_image": 2, "learning_rate": 4e-3},
}
#: Plain ``compare``: one of them beside ``EMBEDDED``.
EMBEDDED_YOUNGER = Recipe(POLICY, YOUNGER)
#: ``--suite modern``: they alone; what they are compared with has the recipe of ``paper``.
MODERN = Recipe(POLICY, YOUNGER, evaluation_images=32, queries_per_evaluation=128)

#: Others younger than the paper, likewise. MixGRPO's window moves more often than published, to reach all places.
_TWO_OF_64 = {"images_per_iteration": 64, "updates_per_iteration": 2, "learning_rate": 4e-3}
_PUBLISHED: dict[str, dict[str, object]] = {
    "grpo-fast": {**_IN_GROUPS, **_TWO_OF_64},
    "mixgrpo": {**_IN_GROUPS, **_TWO_OF_64, "learning_rate": 8e-3, "window_every": 2},
    "d3po": {**_TWO_OF_64, "num_envs": 32},
}
#: By the reward's own gradient: smaller iterations, because few images say where to go.
_FOUR_OF_32 = {"images_per_iteration": 32, "num_envs": 32, "updates_per_iteration": 4, "learning_rate": 2e-3}
_GRADIENT: dict[str, dict[str, object]] = {
    **{name: {**_FOUR_OF_32, "eta": 0.0} for name in ("draft", "draft-lv", "refl")},
    "opsd": {**_FOUR_OF_32, "updates_per_iteration": 2, "learning_rate": 4e-3, "eta": 0.0},
}
#: ``--suite presets``, evaluated as ``MODERN``: what the search ranks first; of d3po a later candidate, a higher rate,
#: gains 5 % more than this one.
PRESETS = replace(MODERN, settings={**_PUBLISHED, **_GRADIENT})

#: ``--suite quick``: two small iterations, with every part of the algorithm in them.
_TWO_UPDATES = {"updates_per_iteration": 2, "batch_size": 32}
_ONE_ROUND = {"images_per_iteration": 32, "num_envs": 32}
_SMALL: dict[str, dict[str, object]] = {
    "ddpo-is": {**_ONE_ROUND, "updates_per_iteration": 2},
    "ddpo-sf": {**_ONE_ROUND},
    "rwr": {**_ONE_ROUND, **_TWO_UPDATES},
    "sparse-rwr": {**_ONE_ROUND, **_TWO_UPDATES},
    "awm": {**_ONE_ROUND},
    "sb3-ppo": {**_ONE_ROUND},
}
QUICK = Recipe(
    POLICY,
    {name: {**settings, **_SMALL[name]} for name, settings in EMBEDDED.settings.items()},
    evaluation_images=16,
    queries_per_evaluation=32,
)

QUICK_YOUNGER = replace(QUICK, settings=YOUNGER)

_RECOMMENDED = recommended_for(EMOJI_WORLD)


def _on_emoji_world(*algorithms: str, **common: object) -> dict[str, dict[str, object]]:
    return {name: {**_RECOMMENDED.settings(name), **common} for name in algorithms}


#: Tasks on emoji-world: the settings that its training.json recommends, which ``train`` begins with too.
GENEVAL = Recipe(PolicyConfig(), _on_emoji_world(*SETTINGS, "awm", "sb3-ppo"), queries_per_evaluation=1024)
#: ``--suite composition``: the same, with more evaluations, and the KL to the starting model for the frontiers.
COMPOSITION = Recipe(PolicyConfig(), _on_emoji_world(*SETTINGS, "awm", kl_to_start=True), queries_per_evaluation=512)
#: ``modern`` and ``search`` on emoji-world: the younger algorithm that ``composition`` does not have.
MODERN_GENEVAL = Recipe(PolicyConfig(), _on_emoji_world("branched"), queries_per_evaluation=512)
#: ``--suite follow``: the algorithm that follows prompts best.
FOLLOW = Recipe(PolicyConfig(), _on_emoji_world("awm"), queries_per_evaluation=1536)
#: ``--suite quick``: as ``QUICK``, with these policies.
QUICK_GENEVAL = Recipe(
    PolicyConfig(),
    {name: {**settings, **_SMALL[name]} for name, settings in GENEVAL.settings.items()},
    queries_per_evaluation=32,
)

#: The paper's own settings (its appendix): all weights of Stable Diffusion 1.4, guidance 5 also in
#: training, AdamW at 1e-5; RWR's data set of 10,000 images in groups of 16 of a prompt, re-encoded by the VAE.
_DDPO_SD = {"images_per_iteration": 256, "num_envs": 16, "learning_rate": 1e-5}
_RWR_SD = {
    "images_per_iteration": 10_000,
    "num_envs": 16,
    "images_per_prompt": 16,
    "updates_per_iteration": 400,
    "batch_size": 128,
    "learning_rate": 1e-5,
    "reencode_images": True,
}
STABLE_DIFFUSION = Recipe(
    PolicyConfig(sampler="ddim", trainable="full", guidance_scale=5.0, chunk_size=8),
    {
        "ddpo-is": {**_DDPO_SD, "updates_per_iteration": 4},
        "ddpo-sf": _DDPO_SD,
        "rwr": {**_RWR_SD, "beta": 5.0, "standardise": False},  # exp(0.2 r): the paper's beta is an inverse temperature
        "sparse-rwr": {**_RWR_SD, "top_fraction": 0.1},
    },
    queries_per_evaluation=2_304,
)

#: On the exact family the mixture's own parameters are trained; an update is one chunk.
_DDPO_EXACT = {"images_per_iteration": 64, "learning_rate": 0.02}
_RWR_EXACT = {"images_per_iteration": 128, "num_envs": 128, "images_per_prompt": 128, "updates_per_iteration": 10}
EXACT = Recipe(
    PolicyConfig(sampler="ddim", trainable="full", chunk_size=320),
    {
        "ddpo-is": {**_DDPO_EXACT, "updates_per_iteration": 2},
        "ddpo-sf": _DDPO_EXACT,
        "rwr": {**_RWR_EXACT, "learning_rate": 0.01},
        "sparse-rwr": {**_RWR_EXACT, "learning_rate": 0.01},
        "sb3-ppo": {**_DDPO_EXACT, **_PPO},
    },
    queries_per_evaluation=128,
)
