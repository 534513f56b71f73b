"""Checks that an algorithm keeps what every algorithm promises, on models whose answers are known."""

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from algorithms import ALGORITHMS
from algorithms.base import FORWARDS_PER_TRAINED_ROW, DiffusionAlgorithm
from algorithms.checked_gradient import check_gradient
from algorithms.checked_runs import (
    ITERATIONS,
    LEARNING,
    Run,
    SaveInSecond,
    Subject,
    first_difference,
    global_generators,
    learn,
    logged,
    run,
    state,
)
from algorithms.config.base import AlgorithmConfig, EvaluationConfig
from algorithms.evaluation import evaluate
from algorithms.rollouts import Rollout

#: Steps of the optimizer that change no weight.
FROZEN: Mapping[str, Any] = {"learning_rate": 1e-30, "weight_decay": 0.0}
LEARNING_ITERATIONS = 20
#: What is 0 in ``train/`` of the log while the policy is the old policy and the start.
DISTANCES = ("log_ratio", "approx_kl", "clip_fraction", "kl_to_", "kl_per_", "drift_from_")


def check_algorithm(
    algorithm: type[DiffusionAlgorithm[Any]] | AlgorithmConfig | str,
    config: AlgorithmConfig | None = None,
    *,
    policy_gradient: bool = False,
    ratio_tolerance: float = 0.0,
    flow: bool = False,
    **settings: Any,
) -> None:
    """Check an algorithm on the exact models in seconds, as Gymnasium's ``check_env`` does an environment.

    It trains small runs on the CPU and checks that

    - before the first update the importance ratio is exactly 1, every distance from the old policy and from the start
      in the log is 0, and so is the KL to the start;
    - the rows that pass through the denoiser are those that ``forward_equivalents`` counts, with and without guidance;
    - two runs of one seed are equal bit for bit, whatever the global random generators hold;
    - a run that was saved in the middle of a rollout resumes as if it had never stopped, bit for bit;
    - a linear reward rises for every prompt by more than two of its standard deviations at the start;
    - with ``policy_gradient`` the first gradient points where that of the expected reward does.

    Args:
        algorithm: a class, a configuration of a registered one, or a name of :data:`ALGORITHMS`.
        config: of the class; None takes its defaults.
        policy_gradient: the update estimates the gradient of the expected reward, up to a positive factor.
        ratio_tolerance: nats by which the ratio and distances may differ from 1 and 0, for an algorithm that scores
            other chunks than were sampled.
        flow: take the exact flow-matching models in place of the diffusion models.
        settings: fields of the configuration, or of the dataclasses in it, that differ from the small settings of the
            check; for example the ``learning_rate``, which suits two means of order 1 and not a UNet.

    Raises:
        AssertionError: a promise that is not kept: which, what was measured, and what to look at.
        TypeError, ValueError: an unknown name, or settings that the algorithm refuses.
    """
    subject = Subject(*_resolve(algorithm, config), flow, settings)
    with global_generators(0):
        _check_start(subject, ratio_tolerance)
        whole = run(subject, 1)
        _check_state(subject, whole)
        _check_costs(subject, whole)
        _check_costs(subject, run(subject, guidance_scale=2.0))
        _check_repeats(subject, whole, run(subject, 2))
        _check_resumes(subject, whole)
        _check_learns(subject)
        if policy_gradient:
            check_gradient(subject)


def _resolve(
    algorithm: type[DiffusionAlgorithm[Any]] | AlgorithmConfig | str, config: AlgorithmConfig | None
) -> tuple[type[DiffusionAlgorithm[Any]], AlgorithmConfig]:
    """Return a class and its configuration."""
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {algorithm!r}; expected a class, or one of {sorted(ALGORITHMS)}.")
        return ALGORITHMS[algorithm].cls, config or ALGORITHMS[algorithm].config
    if isinstance(algorithm, AlgorithmConfig):
        found = [entry.cls for entry in ALGORITHMS.values() if type(entry.config) is type(algorithm)]
        if not found:
            raise ValueError(
                f"no registered algorithm has a {type(algorithm).__name__}; give the class, too: "
                "check_algorithm(cls, config)."
            )
        return found[0], algorithm
    return algorithm, config or algorithm.config_class()


def _check_start(subject: Subject, tolerance: float) -> None:
    """Check ratio, distances in the log and KL while no weight changes."""
    dense = len(subject.build().policy.trainable_steps) > 0
    measured: dict[str, Any] = {"evaluation": EvaluationConfig(images=8), "kl_to_start": True} if dense else {}
    algorithm, gaps = subject.build(**FROZEN, **measured), [0.0]
    lines, update = logged(algorithm), algorithm.update

    def watched(rollout: Rollout) -> dict[str, float]:
        gaps.extend(_ratio_gaps(algorithm, rollout))
        metrics = update(rollout)
        _check_metrics(subject, metrics)
        return metrics

    algorithm.update = watched  # type: ignore[method-assign]
    learn(algorithm, 1)
    subject.require(
        max(gaps) <= tolerance,
        "before the first update the importance ratio must be exactly 1, but the log-densities of sampled_chunks() "
        f"differ from those of the rollout by up to {max(gaps):g} nats; look at collect(), sampling_weights() and "
        "sampled_chunks(): the same weights must score the same rows in the same chunks.",
    )
    for name, value in (item for line in lines for item in line.items()):
        far = name.startswith("train/") and any(part in name for part in DISTANCES) and not abs(value) <= tolerance
        subject.require(
            not far,
            "while no weight has changed, the policy is the old policy and the start, but the log has "
            f"{name} = {value:g}, expected 0; look at which rows, chunks and weights the update compares.",
        )
    kl = None if algorithm.last_evaluation is None else algorithm.last_evaluation.kl_to_start
    subject.require(
        not dense or kl is not None,
        "kl_to_start=True must measure the KL to the start in evaluations, but none was measured; let requires() build "
        "on super().requires(config).",
    )
    subject.require(
        kl is None or not kl.any(),
        "before training the KL to the start must be 0, but an evaluation measured "
        f"{0.0 if kl is None else float(kl.max()):g} nats; look at what changes the policy's weights before update(), "
        "for example _setup_model() after super()._setup_model().",
    )


def _check_metrics(subject: Subject, metrics: object) -> None:
    """Check that an update returns names and finite numbers."""
    items = list(metrics.items()) if isinstance(metrics, dict) else [metrics]
    wrong = [item for item in items if not (isinstance(item, tuple) and _is_finite(item[1]))]
    subject.require(
        not wrong,
        f"update() must return names in the log and finite numbers, but returned {wrong[:1]}; give {{}} for nothing, "
        "floats in the place of tensors, and look for NaN at steps without a density, which are not among "
        "policy.trainable_steps.",
    )


def _ratio_gaps(algorithm: DiffusionAlgorithm[Any], rollout: Rollout) -> Iterator[float]:
    """Yield the largest |log ratio| of each chunk that was sampled, where the rollout has log-densities."""
    windows = rollout.windows is not None
    if not rollout.is_whole or not (windows or len(algorithm.policy.trainable_steps)):
        return
    with torch.no_grad():
        for update in range(rollout.updates):
            size = algorithm.policy.chunk_size
            for chunk in rollout.window_chunks(update, size) if windows else algorithm.sampled_chunks(rollout, update):
                now, _ = chunk.log_prob_under(algorithm.policy)
                yield float((now - chunk.log_prob).abs().max())


def _check_state(subject: Subject, made: Run) -> None:
    """Check that updates were made by ``step()``, and that the state can be saved."""
    subject.require(
        made.algorithm.gradient_steps.made > 0,
        f"{ITERATIONS} iterations made no update through step(optimizer), which clips gradients, sums them over ranks "
        "and moves the average of the weights; call it in the place of optimizer.step().",
    )
    try:
        json.dumps(made.algorithm.extra_state(), allow_nan=False)
    except (TypeError, ValueError) as error:
        subject.require(
            False,
            f"extra_state() must be what JSON holds, texts, finite numbers, lists and dictionaries, but {error}; "
            "return tensors from extra_tensors().",
        )


def _check_costs(subject: Subject, made: Run) -> None:
    """Check that the rows that passed through the denoiser were billed."""
    guidance, billed = made.algorithm.config.policy.guidance_scale, made.algorithm.costs["forward_equivalents"]
    subject.require(
        billed == made.forwards,
        f"every row through the denoiser must be billed, one with a gradient as {FORWARDS_PER_TRAINED_ROW}, but "
        f"{made.algorithm.iteration} iterations with guidance_scale {guidance:g} took {made.forwards} forwards and "
        f"cost/forward_equivalents is {billed}; look at what update() gives to count_rows(trained, guided, reference), "
        "and at collect().",
    )


def _check_repeats(subject: Subject, one: Run, other: Run) -> None:
    """Check that two runs of one seed are equal bit for bit."""
    difference = first_difference(state(one.algorithm, one.lines), state(other.algorithm, other.lines))
    subject.require(
        difference is None,
        f"two runs of one seed must be equal bit for bit, but {difference}; draw random numbers from "
        "algorithms.seeding.generator(seed, Stream.UPDATES, iteration), not from the global generators; what is "
        "measured in time is left out where its name has 'seconds' in it.",
    )


def _check_resumes(subject: Subject, whole: Run) -> None:
    """Check that a checkpoint of the middle of the second rollout resumes bit for bit."""
    file = io.BytesIO()
    run(subject, callback=SaveInSecond(file))
    subject.require(
        file.tell() > 0,
        "a callback must be able to save in a rollout, but none was called in the second one; let collect() call "
        "callback.on_step() at every step, as algorithms.sampling.collect does with on_step.",
    )
    resumed = subject.cls.load(file, subject.env())
    lines = logged(resumed)
    learn(resumed, ITERATIONS)
    difference = first_difference(state(whole.algorithm, whole.lines[1:]), state(resumed, lines))
    subject.require(
        difference is None,
        f"a run that resumes from a checkpoint must equal one that never stopped, bit for bit, but {difference}; "
        "look at what extra_state(), load_extra_state() and extra_tensors() leave out.",
    )


def _check_learns(subject: Subject) -> None:
    """Check that the reward rises for every prompt by more than two of its standard deviations at the start.

    Each prompt has weights of its own, so luck would have to come four times.
    """
    algorithm = subject.build(LEARNING, reward="exact-linear")
    before = _rewards(algorithm)
    learn(algorithm, LEARNING_ITERATIONS)
    after = _rewards(algorithm)
    stds = before.std(1)
    rise = (after - before).mean(1) / stds
    worst = int(rise.argmin())
    subject.require(
        bool(rise[worst] > 2),
        "the reward exact-linear must rise for every prompt by more than two of its standard deviations at the "
        f"start, but in {LEARNING_ITERATIONS} iterations with learning_rate {algorithm.config.learning_rate:g} its "
        f"mean went from {before[worst].mean():.2f} to {after[worst].mean():.2f} for {algorithm.mdp.prompts[worst]!r}, "
        f"by {rise[worst]:.1f} of them; look at the sign and size of the loss, or give another learning_rate.",
    )


def _rewards(algorithm: DiffusionAlgorithm[Any], images: int = 64) -> Tensor:
    """Return rewards (prompts, images) with the trained weights, on noise that no training uses."""
    prompts = len(algorithm.mdp.prompts)
    config = replace(algorithm.config, evaluation=EvaluationConfig(images=images * prompts))
    return evaluate(algorithm.mdp, algorithm.policy, config, 0).rewards.reshape(images, prompts).T


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
