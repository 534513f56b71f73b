"""The callbacks against overoptimisation, in Python: when they stop, and what they keep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from algorithms import DDPO
from algorithms.callbacks import Best, KeepBest, StopAtKL, StopWhenMetricFalls
from algorithms.evaluation import Evaluation


def small(make_env: Callable, **options: Any) -> DDPO:
    defaults = {"updates_per_iteration": 4, "images_per_iteration": 16, "num_envs": 16, "images": 8}
    return DDPO(make_env(steps=4), **{**defaults, "learning_rate": 0.05, **options})


def test_the_best_by_hand() -> None:
    """An equal value is no improvement, NaN is passed over, and so is the order of resuming."""
    values, best = [1.0, 3.0, float("nan"), 3.0, 2.0, 4.0], Best()
    assert [best.improved_by(value) for value in values] == [True, True, False, False, False, True]
    assert (best.value, best.since) == (4.0, 0)
    assert vars(Best(values[:5])) == {"value": 3.0, "since": 2}


def test_training_stops_at_the_first_evaluation_over_the_kl(make_env: Callable) -> None:
    """The same KLs without a limit; the limit lies between two of them; nothing was sampled after it was passed."""
    seen: list[tuple[int, float]] = []

    class Watch(StopAtKL):
        def on_evaluation(self, evaluation: Evaluation) -> None:
            assert evaluation.kl_to_start is not None
            seen.append((evaluation.iteration, float(evaluation.kl_to_start.double().mean())))

    small(make_env, kl_to_start=True).learn(6 * 16 * 4, Watch(1.0))
    assert [iteration for iteration, _ in seen] == list(range(7))
    kls = [kl for _, kl in seen]
    assert kls[0] == 0.0
    assert kls == sorted(kls)
    stop = StopAtKL((kls[2] + kls[3]) / 2)
    algorithm = small(make_env, kl_to_start=True).learn(6 * 16 * 4, stop)
    assert algorithm.iteration == 3
    assert algorithm.num_timesteps == algorithm._committed_timesteps == 3 * 16 * 4
    assert stop.reason is not None
    assert f"{kls[3]:.4g} nats per image at iteration 3" in stop.reason
    untouched = StopAtKL(kls[-1] + 1)
    assert small(make_env, kl_to_start=True).learn(6 * 16 * 4, untouched).iteration == 6
    assert untouched.reason is None


def test_training_stops_once_the_metric_has_not_risen_for_the_patience(make_env: Callable) -> None:
    """Values 1, 2, 1.5, 2, 1: the best is at iteration 1; with patience 3 it stops at 4, with 4 not before 5."""
    values = [1.0, 2.0, 1.5, 2.0, 1.0, 0.0, 3.0]
    for patience, end in ((3, 4), (4, 5), (6, 7)):
        stop = StopWhenMetricFalls(lambda evaluation: values[evaluation.iteration], patience, "beauty")
        algorithm = small(make_env).learn(6 * 16 * 4, stop)
        assert algorithm.iteration == min(end, 6)
        assert (stop.reason is None) == (end > 6)
        if stop.reason is not None:
            assert f"beauty was not better than its best, 2, in {patience} evaluations" in stop.reason


def test_a_resumed_callback_is_told_what_was_before(make_env: Callable) -> None:
    stop = StopWhenMetricFalls(lambda evaluation: 0.0, 3, earlier=[1.0, 0.5])
    assert small(make_env).learn(6 * 16 * 4, stop).iteration == 1


def test_the_best_checkpoint_is_that_of_the_best_evaluation(
    make_env: Callable, digest: Callable, tmp_path: Path
) -> None:
    """The weights at iteration 2, as a run of two iterations has them; the later ones did not replace it."""
    values = [0.0, 1.0, 5.0, 4.0, 3.0]
    keep = KeepBest(tmp_path / "best", lambda evaluation: values[evaluation.iteration])
    small(make_env).learn(4 * 16 * 4, keep)
    kept = DDPO.load(tmp_path / "best", make_env(steps=4))
    assert kept.iteration == 2
    assert digest(kept) == digest(small(make_env).learn(2 * 16 * 4))
    assert list(tmp_path.iterdir()) == [tmp_path / "best.zip"]


def test_the_last_evaluation_can_be_the_best(make_env: Callable, digest: Callable, tmp_path: Path) -> None:
    algorithm = small(make_env).learn(2 * 16 * 4, KeepBest(tmp_path / "best", lambda e: float(e.iteration)))
    assert digest(DDPO.load(tmp_path / "best", make_env(steps=4))) == digest(algorithm)


def test_by_default_the_held_out_reward_decides(make_env: Callable, tmp_path: Path) -> None:
    file = tmp_path / "held-out.txt"
    file.write_text("centre\n")
    judged: list[float] = []

    class Keep(KeepBest):
        def save_best(self, evaluation: Evaluation, value: float) -> None:
            assert evaluation.held_out is not None
            judged.append(value)
            assert value == float(evaluation.held_out.rewards.double().mean())

    small(make_env, held_out_prompts=str(file)).learn(16 * 4, Keep(tmp_path / "best"))
    assert judged


def test_what_is_refused(make_env: Callable) -> None:
    with pytest.raises(ValueError, match="StopWhenMetricFalls decides at evaluations, of which there are none"):
        small(make_env, images=0).learn(64, StopWhenMetricFalls())
    with pytest.raises(ValueError, match="StopAtKL needs the KL to the starting model"):
        small(make_env).learn(64, StopAtKL(1.0))
    for limit in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive, finite number of nats"):
            StopAtKL(limit)
    for patience in (0, 1.5, True):
        with pytest.raises(ValueError, match="patience must be an integer of at least 1"):
            StopWhenMetricFalls(patience=patience)


def test_diversity_is_logged_at_each_evaluation(make_env: Callable) -> None:
    """Where prompts have several images; a single one has none, and the log says nothing of it."""
    logged: list[dict[str, float]] = []
    for images in (4, 1):
        algorithm = small(make_env, images=images)
        algorithm._log = logged.append  # type: ignore[method-assign, assignment]
        algorithm.learn(0)
    assert logged[0]["eval/diversity"] > 0
    assert "eval/diversity" not in logged[1]
