"""Evaluations with the sampler that a tuned model is used with: its pictures, its place in the log, its refusals."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from algorithms import DDPO, DenoisingPolicy, DeployedConfig, EvaluationConfig, PolicyConfig
from algorithms.config.base import override
from algorithms.evaluation import Evaluation, deployed_policy, evaluate, evaluate_deployed
from algorithms.seeding import EVALUATION_STREAMS, Noise
from diffusion_gym import load_model
from diffusion_gym.choices import SOLVERS

PROMPTS = ["cat", "dog", "horse"]


def _algorithm(env: Any, images: int = 3, **deployed: Any) -> DDPO:
    evaluation = EvaluationConfig(images=images, deployed=DeployedConfig(**deployed))
    return DDPO(env, num_envs=4, images_per_iteration=4, chunk_size=2, trainable="full", evaluation=evaluation)


def _deployed(algorithm: DDPO) -> Evaluation:
    return evaluate_deployed(algorithm.mdp, algorithm.policy, algorithm.config, 0)


def _plain(folder: str, algorithm: DDPO, scheduler: str | None, **call: Any) -> torch.Tensor:
    """Return plain diffusers' pictures from the evaluation's initial latents, (3, 3, H, W), uint8."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    noise = Noise(algorithm.config.evaluation.seed, EVALUATION_STREAMS, range(3))
    shape = algorithm.mdp.model.latent_shape
    latents = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in noise.seeds([0, 1, 2])]
    )
    pictures = pipe(PROMPTS, latents=latents, generator=noise.sources(range(3)), output_type="pt", **call).images
    return (pictures * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("scheduler", "eta"),
    [
        ("DPMSolverMultistepScheduler", None),
        ("EulerDiscreteScheduler", None),
        ("EulerAncestralDiscreteScheduler", None),
        ("HeunDiscreteScheduler", None),
        ("LCMScheduler", None),
        (None, 0.0),
    ],
)
def test_pictures_are_the_plain_pipelines(
    make_env: Callable, tiny_sd: str, scheduler: str | None, eta: float | None
) -> None:
    """With their own number of steps and guidance, also in chunks; of a solver that draws noise, too."""
    algorithm = _algorithm(
        make_env(tiny_sd, steps=2, reward="compressibility", prompts=PROMPTS),
        scheduler=scheduler,
        eta=eta,
        num_inference_steps=4,
        guidance_scale=3.0,
    )
    evaluation = _deployed(algorithm)
    expected = _plain(tiny_sd, algorithm, scheduler, num_inference_steps=4, guidance_scale=3.0)
    assert evaluation.prompts == PROMPTS
    assert (evaluation.images.int() - expected.int()).abs().max() <= 1
    assert len(evaluation.rewards) == 3


@pytest.mark.parametrize(
    "scheduler", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("KDPM2")) for name in SOLVERS]
)
def test_every_solver_draws(make_env: Callable, scheduler: str) -> None:
    """On an exact model, whose denoiser takes times between those that it was trained on."""
    if scheduler == "LMSDiscreteScheduler":
        pytest.importorskip("scipy")
    algorithm = _algorithm(make_env("exact-gaussian"), scheduler=scheduler, num_inference_steps=4)
    assert _deployed(algorithm).rewards.isfinite().all()


def test_a_flow_model_is_deployed_at_eta_0(make_env: Callable) -> None:
    """Its own scheduler is then Euler's, and another one is refused."""
    env = make_env("exact-flow-gaussian")
    own, quiet = (_deployed(_algorithm(env, **given)) for given in ({"scheduler": "pipeline"}, {"eta": 0.0}))
    assert torch.equal(own.images, quiet.images)
    with pytest.raises(ValueError, match=r"expected deployed\.eta 0 in its place"):
        _algorithm(env, scheduler="DDIMScheduler")


def test_it_is_measured_first_and_last_and_changes_nothing_else(make_env: Callable, digest: Callable) -> None:
    """The log has both; weights, training images and costs are as without it. ``always`` is each time."""
    trained = {}
    for name, deployed in {"without": {}, "ends": {"eta": 0.0}, "each": {"eta": 0.0, "always": True}}.items():
        algorithm, seen = _algorithm(make_env(), **deployed), []
        evaluate_if_due = algorithm._evaluate_if_due
        algorithm._evaluate_if_due = lambda final=False: (  # type: ignore[method-assign]
            evaluate_if_due(final), seen.append(algorithm.last_evaluation)  # noqa: B023
        )  # fmt: skip
        algorithm.learn(3 * 4 * 5)
        costs = {key: value for key, value in algorithm.costs.items() if key != "seconds"}
        trained[name] = digest(algorithm), costs, [each.deployed is not None for each in seen]
        if name == "ends":
            assert not torch.equal(seen[0].deployed.images, seen[-1].deployed.images)
            metrics = seen[-1].metrics()
            assert metrics["deployed/reward_mean"] == pytest.approx(float(seen[-1].deployed.rewards.mean()))
            same = evaluate(algorithm.mdp, algorithm.policy, algorithm.config, 3)
            assert torch.equal(same.images, seen[-1].images)
    assert trained["without"][:2] == trained["ends"][:2] == trained["each"][:2]
    assert [flags for *_, flags in trained.values()] == [[False] * 4, [True, False, False, True], [True] * 4]


def test_eta_0_takes_the_ancestral_samplers_noise_away(make_env: Callable) -> None:
    """In training DDPM ignores one eta for all steps."""
    algorithm = DDPO(make_env(), sampler="ddpm", trainable="full")
    assert len(algorithm.policy.trainable_steps) == 4
    deployed, _ = deployed_policy(algorithm.policy, DeployedConfig(eta=0.0))
    assert len(deployed.trainable_steps) == 0
    assert deployed.denoiser is algorithm.policy.denoiser
    assert len(algorithm.policy.trainable_steps) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheduler": "EulerScheduler"}, "unknown deployed.scheduler 'EulerScheduler'"),
        ({"scheduler": "DDIMScheduler", "eta": 0.0}, "deployed.eta 0 .* leave one of them out"),
        ({"always": True}, "deployed.always needs a deployed sampler"),
        ({"num_inference_steps": 2000}, "deployed.num_inference_steps must be an integer from 1 to 1000, got 2000"),
        ({"eta": 1.5}, r"deployed.eta must lie in \[0, 1\], got 1.5;"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(make_env: Callable, given: dict[str, Any], message: str) -> None:
    """In the configuration, or when the algorithm is built."""
    with pytest.raises(ValueError, match=message):
        _algorithm(make_env(), **given)


def test_a_plain_setting_is_the_trainings(make_env: Callable) -> None:
    """``DDPO(env, eta=0.5)`` does not reach the deployed sampler."""
    config = _algorithm(make_env(), eta=0.0).config
    changed = override(config, eta=0.5, guidance_scale=2.0)
    assert (changed.policy.eta, changed.policy.guidance_scale) == (0.5, 2.0)
    assert changed.evaluation.deployed == config.evaluation.deployed


def test_negative_prompts_stay_with_guidance_and_go_without() -> None:
    """Deployed guidance leads away from the same negative prompt; without guidance it would be refused."""
    config = PolicyConfig(trainable="full", guidance_scale=3.0, negative_prompt="east")
    policy = DenoisingPolicy(load_model("exact-mixture"), 3, config)
    stronger, _ = deployed_policy(policy, DeployedConfig(guidance_scale=5.0))
    assert policy._uncond is not None
    assert stronger._uncond is not None
    assert torch.equal(stronger._uncond["prompt_embedding"], policy._uncond["prompt_embedding"])
    none, _ = deployed_policy(policy, DeployedConfig(guidance_scale=1.0))
    assert (none.forwards_per_row, none.config.negative_prompt) == (1, None)
