"""The suites: every configuration builds, comparisons are fair, and what is promised of each is declared."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest

from algorithms import ALGORITHMS
from algorithms.config.base import override
from algorithms.seeding import prompt_order
from benchmarks.__main__ import main
from benchmarks.analysis.curves import terms
from benchmarks.analysis.results import read_results
from benchmarks.commands.compare import Compare, _compare
from benchmarks.commands.search import (
    ALIGNMENT_CANDIDATES,
    CANDIDATES,
    FURTHER_ON_ALIGNMENT,
    GENEVAL_CANDIDATES,
    PAST_THE_EDGE,
    SIX,
    YOUNGER_ALIGNMENT_CANDIDATES,
    YOUNGER_CANDIDATES,
    Search,
)
from benchmarks.commands.train import defaults, train
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.suite import CLAIMS, EMBEDDED, GENEVAL, SUITES, TASKS
from benchmarks.suite.ladder import RUNGS
from benchmarks.sweeps.dry_run import dry_run, evaluations
from diffusion_gym import ENV_ID
from diffusion_gym.prompts import resolve_prompts

#: The paper's algorithms: what every suite compares where nothing else is said.
PAPERS = ["ddpo-is", "ddpo-sf", "rwr", "sparse-rwr"]


def plan_of(name: str) -> dict[str, RunSpec]:
    return Compare(suite=name).plan()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SUITES)
def test_every_configuration_builds(name: str) -> None:
    """Building checks fields, rewards, prompts and metrics; the dry run checks what algorithms require."""
    plan = plan_of(name)
    first = plan[next(iter(plan))].config.seed
    for spec in (spec for spec in plan.values() if spec.config.seed == first):  # other seeds differ in nothing else
        spec.check()
        assert RunSpec.from_json(spec.to_json()) == spec
        # Diversity compares pictures of one prompt: there must be two of some.
        many = (
            spec.task.prompts is not None and len(resolve_prompts(spec.task.prompts)) >= spec.config.evaluation.images
        )
        assert not ("diversity" in spec.task.metrics and many)
    suite = SUITES[name]
    run = {name: len(set(c.variants) - set(suite.on_request)) for name, c in suite.comparisons.items()}
    assert len(plan) == sum(run[name] * len(c.seeds or suite.seeds) for name, c in suite.comparisons.items())


@pytest.mark.parametrize("name", ["default", "quick", "composition", "jpeg", "exact", "paper", "paper-sd"])
def test_algorithms_are_compared_fairly(name: str) -> None:
    more = {"exact": ["sb3-ppo"], "composition": ["awm"], "geneval": ["awm"], "compressibility": ["branched"]}
    for task in SUITES[name].comparisons:
        specs = {key.split("/")[1]: spec for key, spec in plan_of(name).items() if key.startswith(f"{task}/")}
        assert set(specs) == {*PAPERS, *more.get(task if name in ("default", "quick") else name, [])}
        # Whole iterations: Stable Diffusion's 256 images do not divide 50,000.
        assert {spec.total_queries for spec in specs.values()} <= {specs["rwr"].reward_queries, 50_176}
        assert len({spec.task for spec in specs.values()}) == 1
        assert len({(e := spec.config.evaluation).images * 1000 + e.seed for spec in specs.values()}) == 1
        assert len({spec.config.evaluation.held_out_prompts for spec in specs.values()}) == 1
        assert len({dataclasses.replace(spec.config.policy, eta=1.0) for spec in specs.values()}) == 1
        for algorithm in ("rwr", "sparse-rwr"):
            config = specs[algorithm].config
            assert config.images_per_prompt >= 16, "a softmax over fewer images of a prompt means little"


def test_the_papers_suite_is_what_it_promises() -> None:
    plan = plan_of("paper")
    assert {name.split("/")[0] for name in plan} == {
        "compressibility",
        "incompressibility",
        "aesthetic",
        "vlm_alignment",
    }
    assert {int(name.rpartition("-")[2]) for name in plan} == {0, 1, 2, 3, 4}
    for spec in plan.values():
        assert spec.total_queries == 2048
        iterations = spec.total_queries // spec.config.images_per_iteration
        assert evaluations(spec) >= 20 or evaluations(spec) == iterations + 1, "every policy there is"
        assert spec.config.kl_to_start
        if spec.task.reward == "vlm_alignment":
            assert spec.config.evaluation.images == len(resolve_prompts(spec.task.prompts)), "each prompt once"
        assert {"clip_score", "recognised"} <= set(spec.task.metrics)
        assert spec.task.reward != "clip_score"
        assert not set(resolve_prompts(spec.task.prompts)) & set(
            resolve_prompts(spec.config.evaluation.held_out_prompts)
        )


def test_stable_diffusion_has_the_papers_numbers() -> None:
    """The table of the paper's appendix."""
    plan = plan_of("paper-sd")
    assert len(plan) == 4 * len(PAPERS)
    for spec in plan.values():
        config = spec.config
        assert (config.policy.trainable, config.policy.guidance_scale, config.policy.eta) == ("full", 5.0, 1.0)
        assert (config.learning_rate, config.weight_decay, config.max_grad_norm) == (1e-5, 1e-4, 1.0)
        assert (spec.task.num_inference_steps, spec.task.model) == (50, "CompVis/stable-diffusion-v1-4")
        if spec.algorithm.startswith("ddpo"):
            assert config.images_per_iteration == 256
            assert config.updates_per_iteration == (4 if spec.algorithm == "ddpo-is" else 1)
            if spec.algorithm == "ddpo-is":
                assert config.clip_range == pytest.approx(1e-4 * 4 * 64 * 64, abs=2e-3)
            continue
        assert (config.images_per_iteration, config.updates_per_iteration, config.batch_size) == (10_000, 400, 128)
        assert config.reencode_images
        assert config.cfg_training
        if config.sparse:
            assert config.top_fraction == 0.1
        else:
            assert (1 / config.beta, config.standardise) == (0.2, False)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claims_pairs_are_among_its_variants(name: str) -> None:
    claim = CLAIMS[name]
    assert {side for pair in claim.pairs for side in pair} <= set(claim.variants)
    assert set(claim.peaks) <= set(claim.task.config.metrics)
    assert SUITES["paper-claims"].comparisons[name].seeds == claim.seeds
    specs = [spec for key, spec in plan_of("paper-claims").items() if key.startswith(f"{name}/")]
    assert len({spec.total_queries for spec in specs}) == 1, "equal reward queries"


@pytest.mark.parametrize("name", ["default", "composition", "follow"])
def test_geneval_runs_with_the_settings_that_its_model_recommends(name: str) -> None:
    """The suites and ``train --model emoji-world`` have one set of settings: those of the model's folder."""
    for key, spec in plan_of(name).items():
        if key.startswith("geneval/"):
            own = defaults(spec.algorithm, "emoji-world")
            config = override(spec.config, seed=own.algorithm.seed, kl_to_start=False)
            assert dataclasses.replace(config, evaluation=own.algorithm.evaluation) == own.algorithm
            assert spec.config.kl_to_start == (name == "composition")
            assert spec.task.num_inference_steps == own.task.num_inference_steps
            assert {"judge", "judge-counting", "judge-color_attr"} < set(spec.task.metrics)
            assert spec.config.evaluation.held_out_prompts == "emoji-world-held-out"


def test_plain_compare_is_the_default_suite() -> None:
    plan = Compare().plan()
    assert plan == plan_of("default")
    assert {key.split("/")[0] for key in plan} == {"geneval", "compressibility"}
    quick = Compare(quick=True).plan()
    assert quick.keys() == plan.keys()
    assert {spec.total_queries for spec in quick.values()} == {64}


def test_the_search_on_geneval_changes_what_the_model_recommends() -> None:
    """Held-out prompts are left to what is reported."""
    plan = Search(tasks=("geneval",)).plan()
    assert len(plan) == sum(map(len, GENEVAL_CANDIDATES.values()))
    for spec in plan.values():
        spec.check()
        assert spec.config.evaluation.held_out_prompts is None
    first = GENEVAL_CANDIDATES["rwr"][0]
    changed = override(GENEVAL.config("rwr", 1000, **first), images=96, every=10**6)
    assert plan["geneval/rwr-0/seed-1000"].config == changed
    with pytest.raises(ValueError, match="geneval has candidates of its own; search on it alone"):
        Search(tasks=("geneval", "compressibility"))


def test_claims_with_five_seeds_have_no_runs_of_their_own() -> None:
    """Their runs are those of the paper's suite, so that the two pages cannot say different things."""
    papers = set(plan_of("paper").values())
    for key, spec in plan_of("paper-claims").items():
        if len(CLAIMS[key.split("/")[0]].seeds) == 5:
            assert spec in papers, key


def test_the_modern_suite_compares_with_runs_that_exist() -> None:
    """On equal terms; the paper's algorithms are not run again."""
    younger = {"branched", "awm"}
    modern, papers, composition = (
        Compare(suite=name, seeds=(3,)).plan() for name in ("modern", "paper", "composition")
    )
    made = {**papers, **composition}
    assert made.items() <= modern.items()
    assert {name.split("/")[1] for name in modern.keys() - made.keys()} == younger
    for task in SUITES["modern"].comparisons:
        specs = [spec for name, spec in modern.items() if name.startswith(f"{task}/")]
        assert len({terms(spec) for spec in specs}) == 1
        assert {spec.algorithm for spec in specs} == {*PAPERS, *younger}


def test_the_presets_suite_is_on_equal_terms_with_the_papers_runs() -> None:
    """Reward gradients are there only where the reward has one."""
    presets = Compare(suite="presets", seeds=(3,)).plan()
    papers = Compare(suite="paper", seeds=(3,), reward_queries=1024).plan()
    for task in SUITES["presets"].comparisons:
        of_task = {name.split("/")[1]: spec for name, spec in presets.items() if name.startswith(f"{task}/")}
        assert ("draft" in of_task) == (task == "aesthetic")
        assert {terms(spec) for spec in of_task.values()} == {terms(papers[f"{task}/ddpo-is/seed-3"])}
        assert {spec.algorithm for spec in of_task.values()} < YOUNGER_CANDIDATES.keys()


def test_each_rung_of_the_ladder_adds_one_factor() -> None:
    names = list(RUNGS)
    steps = [*itertools.pairwise(names[1:8]), ("branched", "mask"), ("re-noised", "re-noised-quiet")]
    for before, name in [*steps, ("re-noised-quiet", "anchor-start")]:
        assert len(RUNGS[name].changes.items() - RUNGS[before].changes.items()) == 1, name
    plan = Compare(suite="ladder", seeds=(0,)).plan()
    for key, spec in plan.items():
        first = plan[f"{key.split('/')[0]}/ddpo-is/seed-0"]
        for same in ("images_per_iteration", "updates_per_iteration", "learning_rate", "max_grad_norm"):
            assert getattr(spec.config, same) == getattr(first.config, same)


def test_rwr_trains_as_much_on_an_image_however_often_it_samples() -> None:
    for key, spec in plan_of("paper-claims").items():
        if key.startswith("rwr-interleaving/rwr"):
            config = spec.config
            assert config.updates_per_iteration * config.batch_size == 10 * config.images_per_iteration


def test_the_search_is_of_one_size_on_seeds_of_its_own() -> None:
    assert {name: len(found) for name, found in SIX.items()} == dict.fromkeys(PAPERS, 6)
    for name, further in PAST_THE_EDGE.items():
        # They differ from one of the six, all from the same, in nothing but ever higher learning rates.
        rates = [float(str(one["learning_rate"])) for one in (*SIX[name], *further)]
        assert rates[6:] == sorted(set(rates[6:]))
        assert rates[6] > max(rates[:6])
        rest = {tuple((field, value) for field, value in one.items() if field != "learning_rate") for one in further}
        assert rest < {tuple((f, v) for f, v in six.items() if f != "learning_rate") for six in SIX[name]}
        assert len(rest) == 1
    options = Search()
    assert len(options.tasks) == 2
    used = {seed for suite in SUITES.values() for seed in suite.seeds}
    assert not set(options.seeds) & used
    for spec in options.plan().values():
        spec.check()
        # Ten trained rows an image for RWR, nine or ten for DDPO, whose every step is trained once.
        if spec.algorithm.endswith("rwr"):
            assert spec.config.updates_per_iteration * 128 == 10 * spec.config.images_per_iteration


def test_the_search_for_younger_algorithms_has_one_recipe_for_all_tasks() -> None:
    plan = Search(algorithms=("branched", "awm"), tasks=("aesthetic", "compressibility")).plan()
    past = {"grpo-fast": 1, "mixgrpo": 1, "d3po": 1, "branched": 4}  # higher rates than the best; with noise
    assert {name: len(found) for name, found in YOUNGER_CANDIDATES.items()} == {
        name: 4 + past.get(name, 0) for name in YOUNGER_CANDIDATES
    }
    assert len(YOUNGER_CANDIDATES["branched"]) == len(CANDIDATES["ddpo-is"]) + 1
    assert len(plan) == 2 * (8 + 4)
    assert plan["aesthetic/awm-1/seed-1000"].config == plan["compressibility/awm-1/seed-1000"].config
    assert len(Search(algorithms=("branched",), tasks=("geneval",)).plan()) == 2 * 4 + 2, "also early, and with noise"
    assert len(Search(algorithms=("branched", "awm"), tasks=("vlm_alignment",)).plan()) == 3 * 4 + 2 * 2, "likewise"
    with pytest.raises(ValueError, match="search on it alone"):
        Search(algorithms=("branched",), tasks=("geneval", "aesthetic"))


def test_the_search_on_alignment_gives_no_algorithm_less_than_ddpo() -> None:
    assert {name: len(found) for name, found in ALIGNMENT_CANDIDATES.items()} == {
        "ddpo-is": 4,
        "ddpo-sf": 4,
        "rwr": 5,
        "sparse-rwr": 5,
    }, "the baseline has one more"
    noisy = [one for one in YOUNGER_ALIGNMENT_CANDIDATES["awm"] if one.get("eta") == 1.0]
    assert {name: len(found) for name, found in FURTHER_ON_ALIGNMENT.items()} == {"ddpo-is": len(noisy)}
    plan = Search(tasks=("vlm_alignment",)).plan()
    assert {name.split("/")[1].rpartition("-")[0] for name in plan} == set(CANDIDATES)
    for spec in plan.values():
        spec.check()
    with pytest.raises(ValueError, match="search on it alone"):
        Search(tasks=("vlm_alignment", "aesthetic"))


def test_settings_of_the_jpeg_suite_are_those_of_its_results() -> None:
    """The committed five seeds would be taken over, not run again."""
    file = Path(__file__).parents[2] / "docs" / "results" / "compare" / "results.json"
    made = {run.spec for run in read_results(file).runs}
    plan = Compare(suite="jpeg", seeds=(0, 1, 2, 3, 4)).plan()
    assert set(plan.values()) == made
    assert EMBEDDED.spec(TASKS["compressibility"], "rwr", 3) in plan.values()


@pytest.mark.parametrize(
    "name",
    [
        *("composition", "follow", "paper", "paper-claims", "learned-rewards", "leash", "baseline", "exact"),
        *("hacking", "presets", "stopped", "modern", "ladder"),
    ],
)
def test_committed_runs_have_the_settings_of_their_suite(name: str) -> None:
    """So that the command beside the results goes on from them, and makes none of them again."""
    file = Path(__file__).parents[2] / "docs" / "results" / name / "results.json"
    plan = plan_of(name)
    made = {run.name: run.spec for run in read_results(file).runs}
    assert made
    assert made.items() <= plan.items()


@pytest.mark.parametrize("name", ["default", "quick", "jpeg"])
def test_ppo_is_compared_where_it_is_asked_for(name: str) -> None:
    """On the same task and evaluation, for the same reward queries, with about the forwards of DDPO-IS."""
    plan = Compare(suite=name, algorithms=("ddpo-is", "sb3-ppo"), seeds=(0,)).plan()  # type: ignore[arg-type]
    assert {key.split("/")[1] for key in plan} == {"ddpo-is", "sb3-ppo"}
    for task in SUITES[name].comparisons:
        ddpo, ppo = (plan[f"{task}/{variant}/seed-0"] for variant in ("ddpo-is", "sb3-ppo"))
        ppo.check()
        assert (ppo.task, ppo.total_queries) == (ddpo.task, ddpo.total_queries)
        assert ppo.config.evaluation == ddpo.config.evaluation
        assert ppo.config.n_epochs == 1


def test_the_leash_is_all_that_differs() -> None:
    specs = {name.split("/")[1]: spec for name, spec in plan_of("leash").items() if name.endswith("seed-0")}
    free, held = specs["ddpo-is"], specs["ddpo-is-kl"]
    assert held.config.kl_penalty > 0
    assert held.config == dataclasses.replace(free.config, kl_penalty=held.config.kl_penalty)
    assert free.config.kl_to_start
    assert evaluations(free) == 17


def test_the_baseline_is_all_that_differs() -> None:
    """So the runs of the paper's suite are one side, and on the other every prompt is compared with its new images."""
    specs = {name.split("/")[1]: spec for name, spec in plan_of("baseline").items() if name.endswith("seed-2")}
    running, newest = specs["ddpo-is"], specs["ddpo-is-newest"]
    assert running == plan_of("paper")["compressibility/ddpo-is/seed-2"]
    assert newest.config == dataclasses.replace(running.config, statistics_buffer=4)
    size, prompts = newest.config.images_per_iteration, len(resolve_prompts(newest.task.prompts))
    for first in range(0, newest.total_queries, size):
        order = prompt_order(newest.config.seed, prompts, newest.config.images_per_prompt, first, size)
        counts = [order.count(prompt) for prompt in range(prompts)]
        assert min(counts) > newest.config.statistics_buffer, "no older reward is left"
        assert max(counts) <= 8


def test_dry_run_says_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--suite", "paper-sd", "--dry-run", "--tasks", "aesthetic", "--seeds", "0", "1"]) == 0
    output = capsys.readouterr().out
    assert "| aesthetic | rwr | CompVis/stable-diffusion-v1-4 | animals | none | 50 | 50,000 | 5 | 6 |" in output
    assert "| 50,384 |" in output, "reward calls, those of evaluations included"
    assert "| not counted | 0 1 |" in output, "an iteration of 10,000 images"
    assert "8 runs, 400,704 reward queries in all; every configuration is valid; nothing was run." in output
    assert "not estimated, as no run of CompVis/stable-diffusion-v1-4 can be tried here: the model is not on" in output


#: Algorithm, what is changed in its configuration, and why neither trains it; None: both do.
CONFIGURATIONS: dict[str, tuple[str, dict[str, object], str | None]] = {
    "ddim without noise": ("ddpo-is", {"eta": 0.0}, "DDPO needs a stochastic sampler"),
    "ddpm knows no eta": ("ddpo-is", {"eta": 0.0, "sampler": "ddpm"}, None),
    "rwr without noise": ("rwr", {"eta": 0.0}, None),
    "rwr's KL without noise": ("rwr", {"eta": 0.0, "kl_to_start": True}, "The KL to the starting model needs"),
    "rwr's KL in ddpm": ("rwr", {"eta": 0.0, "sampler": "ddpm", "kl_to_start": True}, None),
    "a penalty without noise": ("ddpo-sf", {"eta": 0.0, "kl_penalty": 0.1}, "DDPO needs a stochastic sampler"),
    "ppo on the text encoder": ("sb3-ppo", {"train": "both"}, "cannot train a text encoder"),
    "ddpo-is with a penalty": ("ddpo-is", {"kl_penalty": 0.1}, None),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_dry_run_refuses_what_training_refuses_and_nothing_else(name: str) -> None:
    algorithm, changes, refused = CONFIGURATIONS[name]
    entry = ALGORITHMS[algorithm]
    config = override(entry.config, **{"trainable": "full", **changes})
    spec = RunSpec(algorithm, config, TaskConfig(model="exact-gaussian", reward="exact-linear"))
    make = functools.partial(gymnasium.make, ENV_ID, model=spec.task.model, reward=spec.task.reward)
    for build in (lambda: dry_run({"task/variant/seed-0": spec}), lambda: entry.cls(make(), config)):
        with contextlib.nullcontext() if refused is None else pytest.raises(ValueError, match=refused):
            build()


@pytest.mark.parametrize("algorithm", ["draft", "draft-lv", "refl", "opsd"])
def test_a_reward_without_a_gradient_is_refused_before_anything_is_loaded(algorithm: str, tmp_path: Path) -> None:
    """By the dry run, by compare itself, and by train for a model that would have to be downloaded."""
    refused = "the reward 'geneval' has no gradient with respect to the images"

    def plan(reward: str) -> dict[str, RunSpec]:
        task = TaskConfig(model="no/such-model", reward=reward)
        return {"task/variant/seed-0": RunSpec(algorithm, ALGORITHMS[algorithm].config, task)}

    assert "1 runs, 2,048 reward queries and " in dry_run(plan("clip_score?clip=ViT-B-32:0.5,aesthetic:2"))
    with pytest.raises(ValueError, match=refused):
        dry_run(plan("aesthetic,geneval:0.5"))
    with pytest.raises(ValueError, match=refused):
        _compare(Compare(), plan("geneval"), tmp_path / "compared")
    options = dataclasses.replace(defaults(algorithm), task=plan("geneval")["task/variant/seed-0"].task)
    options = dataclasses.replace(options, output=dataclasses.replace(options.output, folder=tmp_path / "trained"))
    with pytest.raises(ValueError, match=refused):
        train(algorithm, options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "paper", "quick": True}, "leave out --quick or --suite paper"),
        ({"suite": "paper", "tasks": ("beauty",)}, "unknown task 'beauty'"),
        ({"suite": "paper-claims", "algorithms": ("rwr-3",)}, "unknown algorithm 'rwr-3'"),
        ({"suite": "paper-claims", "tasks": ("is-against-sf",), "algorithms": ("rwr",)}, "is compared on any of"),
        ({"seeds": ()}, "seeds must be different integers"),
    ],
)
def test_what_a_suite_does_not_hold_is_refused(change: dict[str, object], message: str) -> None:
    builder: Callable[..., Compare] = Compare
    with pytest.raises(ValueError, match=message):
        builder(**change)
