"""One training run in one folder: the same call starts, resumes, lengthens and finishes it.

The folder holds ``run.json`` (specification and provenance), ``metrics.jsonl`` (the log, one line per dump),
``evaluations.jsonl`` (rewards of every evaluation image, and of every held-out one), ``images/`` (their grids),
``checkpoint.zip``, if asked for ``checkpoints/`` (the latest ones) and ``best.zip`` (the one with the best evaluation),
and, at the end, the tuned weights in diffusers' own format beside a model card (``README.md``).
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
from stable_baselines3.common.logger import KVWriter, Logger

import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm
from algorithms.checkpoints.file import read_checkpoint
from algorithms.checkpoints.published import check_replaceable, published
from algorithms.memory import OutOfMemory
from algorithms.parallel.ranks import current_ranks
from benchmarks.runs.folder import (
    BEST,
    CARD_BESIDE,
    CHECKPOINT,
    EVALUATIONS,
    METRICS,
    RUN,
    holds_run,
    log_lines,
    read_json,
    read_spec,
    write_errors_explained,
    write_json,
)
from benchmarks.runs.jsonlines import JSONLines
from benchmarks.runs.metrics import check_worlds
from benchmarks.runs.model_card import CARD, CURVE, write_model_card
from benchmarks.runs.ownership import claimed
from benchmarks.runs.record import Evaluation, Run
from benchmarks.runs.recorder import OnProgress, Recorder
from benchmarks.runs.resuming import begin, check_same, is_finished, prepare, record_reward_files, rewind
from benchmarks.runs.spec import RunSpec, Writing
from benchmarks.runs.watch import safeguard_callbacks, watch_for_hacking
from diffusion_gym.choices import ModelSettings
from diffusion_gym.prompts import Prompt, evaluation_prompts, load_prompts, resolve_prompts
from diffusion_gym.rewards import RewardError, file_digests

OnBuilt = Callable[[DiffusionAlgorithm[Any]], None]
OnAlarm = Callable[[str], None]


def run(
    spec: RunSpec,
    folder: Path,
    writing: Writing = Writing(),  # noqa: B008 - it is frozen
    *,
    on_progress: OnProgress = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_built: OnBuilt = lambda algorithm: None,
    on_alarm: OnAlarm = lambda text: None,
) -> Run:
    """Train to the end of the budget, from the folder's checkpoint if there is one; a finished run is read back.

    A finished run resumes if more reward queries are asked for; a run that completed no iteration is replaced by
    another. Collective: call on every rank, with one folder that all can read; the first writes.

    Args:
        spec: what to run.
        folder: of this run alone.
        writing: checkpoints and logs; torch's threads are the caller's to set.
        on_progress: called after every step of the environments, and after every chunk of an update.
        should_stop: asked after every step of the environments; True checkpoints and returns. An update under way is
            finished first.
        on_built: called with the algorithm before anything is written or trained.
        on_alarm: called with a line for the user when the log shows that the reward is being hacked.

    Raises:
        ValueError: the folder holds another run, a damaged one or other files, or another process trains in it.
        RewardError: the reward failed; the checkpoint is that of the iteration's start.
        DivergedError: too many gradients in a row were not finite; the last checkpoint stays.
        WriteError: nothing more could be written, as on a full disk; the last checkpoint stays.
        RankError: another rank failed or is lost; the last checkpoint stays.
    """
    ranks = current_ranks()
    digests = ranks.call(lambda: file_digests(spec.task.reward))
    with contextlib.ExitStack() as stack:
        stack.enter_context(write_errors_explained(folder))
        # Before the model is loaded, so that two that start together do not share the folder.
        ranks.first(lambda: stack.enter_context(claimed(folder, holds_run, "run")))
        ranks.first(lambda: prepare(spec, folder))
        ranks.call(lambda: check_same(spec, folder))
        algorithm = ranks.call(lambda: build(spec, folder))
        if is_finished(spec, folder):
            return read_run(folder)
        on_built(algorithm)
        logs: list[Any] = []
        ranks.first(lambda: logs.extend(_opened(spec, folder, writing, algorithm)))
        lines = [JSONLines(folder / METRICS)] if ranks.is_first else []
        algorithm.set_logger(Logger(str(folder), [*lines, *logs]))
        stack.callback(algorithm.logger.close)
        recorder = Recorder(spec, folder, writing, on_progress, should_stop, logs)
        _learn(spec, folder, algorithm, recorder, digests, on_alarm)
    return read_run(folder)


def _opened(spec: RunSpec, folder: Path, writing: Writing, algorithm: DiffusionAlgorithm[Any]) -> list[KVWriter]:
    """Begin or resume in the folder; return the logs beside its JSON lines."""
    begin(spec, folder, _facts(spec, algorithm), algorithm.iteration)
    rewind(folder, algorithm.iteration)
    logs: list[KVWriter] = []
    if writing.tensorboard:
        from benchmarks.runs.tensorboard import TensorBoard

        logs.append(TensorBoard(folder / "tensorboard", algorithm.num_timesteps))
    if writing.wandb != "off":
        from benchmarks.runs.weights_and_biases import WeightsAndBiases

        logs.append(WeightsAndBiases(folder, spec.to_json(), writing.wandb))
    return logs


def _learn(
    spec: RunSpec,
    folder: Path,
    algorithm: DiffusionAlgorithm[Any],
    recorder: Recorder,
    digests: dict[str, str],
    on_alarm: OnAlarm,
) -> None:
    """Train and save; export at the end of the budget, or when a safeguard stops the run."""
    steps = spec.total_queries * spec.task.num_inference_steps - algorithm.num_timesteps
    ranks = algorithm.ranks
    if steps > 0:
        ranks.first(lambda: record_reward_files(folder, digests, algorithm.iteration))
    lines, prompts = log_lines(folder, EVALUATIONS), _shown(algorithm.mdp.records, spec)["prompts"]
    hacking = watch_for_hacking(spec, prompts, lines, lambda: recorder.line, on_alarm)
    safeguards = safeguard_callbacks(spec.safeguards, folder, lines, lambda: recorder.line, hacking)
    try:
        algorithm.learn(max(0, steps), [recorder, *safeguards], reset_num_timesteps=False)
    except KeyboardInterrupt:
        if not algorithm.updating:  # else the weights are between two iterations, and the last checkpoint stays
            recorder.save()
        raise
    except OutOfMemory as error:
        if error.chunk_size == 1:
            raise
        smaller = {"chunk_size": error.chunk_size // 2}
        ranks.first(lambda: write_json(folder / RUN, read_json(folder / RUN) | smaller))
        raise MemoryError(
            f"{error.what}. The last checkpoint stays; the same command resumes there with {smaller['chunk_size']}."
        ) from error
    except RewardError as error:
        recorder.save()  # likewise
        raise RewardError(
            f"{error}\nThe run is at iteration {algorithm.iteration}, in {folder / CHECKPOINT}. Once the reward is "
            "corrected, the same command resumes there."
        ) from error
    recorder.save()
    # A run that was asked to stop in its last evaluation has spent its budget, and is not finished.
    going = ranks.all(not recorder.stopped)
    spent = algorithm.costs["reward_queries"] >= spec.total_queries and going
    reason = None if spent else next((each.reason for each in safeguards if each.reason is not None), None)
    if going and hacking is not None and hacking.reason is not None:
        reason = f"{hacking.reason}; exported are the weights of iteration {_return_to_best(folder, algorithm)}"
    if spent or reason is not None:
        _export(spec, folder, algorithm)
        ended = {"complete": True} if reason is None else {"complete": True, "stopped_early": reason}
        ranks.first(lambda: write_json(folder / RUN, {**read_json(folder / RUN), **ended}))


def _return_to_best(folder: Path, algorithm: DiffusionAlgorithm[Any]) -> int:
    """Give the algorithm weights, iteration and costs of ``best.zip``; return the iteration."""
    algorithm.set_parameters(folder / BEST)
    state = read_checkpoint(folder / BEST).state  # its evaluation need not be in the log: the run may have got longer
    algorithm.iteration, algorithm.costs = state["iteration"], state["costs"]
    return algorithm.iteration


def _export(spec: RunSpec, folder: Path, algorithm: DiffusionAlgorithm[Any]) -> None:
    """Write the tuned weights for diffusers, and the model card beside them."""
    model = algorithm.policy.model
    exported = folder if model.exports_lora_file(algorithm.policy.lora) else folder / "pipeline"
    algorithm.export(exported)
    if not model.networks or not algorithm.ranks.is_first:  # diffusers cannot load the exact family
        return
    packages = read_json(folder / RUN)["provenance"]["packages"]
    try:
        check_replaceable(exported, (CARD, CURVE))
    except ValueError as error:
        exported = folder / CARD_BESIDE
        warnings.warn(f"{error} It stays; the run's own model card is in {str(exported)!r}.", stacklevel=2)
    with published(exported) as fresh:
        lines = [line for line in log_lines(folder, EVALUATIONS) if line["iteration"] <= algorithm.iteration]
        write_model_card(fresh, spec, algorithm, read_log(folder), lines, packages)


def read_run(folder: Path, root: Path | None = None) -> Run:
    """Read a run's folder, finished or not, also while it is running.

    Args:
        folder: the run's.
        root: the comparison's folder, in which the run's is TASK/VARIANT/seed-N; None for a run by itself.

    Raises:
        ValueError: there is no run, or a damaged one.
    """
    if not (folder / RUN).is_file():
        raise ValueError(f"{str(folder)!r} holds no run (no {RUN}); expected a folder written by train or compare.")
    data, spec, log = read_json(folder / RUN), read_spec(folder), read_log(folder)
    within = "." if root is None else folder.relative_to(root).as_posix()
    task, variant = (spec.task.reward, spec.algorithm) if root is None else within.split("/")[:2]
    lines = log_lines(folder, EVALUATIONS)
    for number, line in enumerate(lines, 1):
        if len(line["rewards"]) != len(data.get("prompts", line["rewards"])):
            raise ValueError(
                f"line {number} of {str(folder / EVALUATIONS)!r} has {len(line['rewards'])} rewards; expected one for "
                f"each of the prompts in {RUN}. Put a copy of the file back, or delete the line."
            )
    try:
        return Run(
            task=task,
            variant=variant,
            spec=spec,
            complete=data["complete"],
            evaluations=list(map(Evaluation.from_json, lines)),
            costs={key.removeprefix("cost/"): value for key, value in (log or [{}])[-1].items() if "cost/" in key},
            provenance=data["provenance"],
            image_shape=tuple(data["image_shape"]),
            prompts=data["prompts"],
            folder=within,
            stopped_early=data.get("stopped_early"),
            best=data.get("best"),
            **{name: data[name] for name in ("metadata", "held_out_prompts", "held_out_metadata") if name in data},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(folder / RUN)!r} is not a run as written by train or compare: {error!r}.") from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read a run's log, a mapping a line; empty where none was written yet. What was not finite is None."""
    return log_lines(folder, METRICS)


def _facts(spec: RunSpec, algorithm: DiffusionAlgorithm[Any]) -> dict[str, Any]:
    held_out = spec.config.evaluation.held_out_prompts
    others = _shown(load_prompts(held_out).records, spec) if held_out else {}
    return {
        "image_shape": algorithm.mdp.model.image_shape,
        **_shown(algorithm.mdp.records, spec),
        **{f"held_out_{name}": value for name, value in others.items()},
        "log_names": algorithm.log_names(),
        "device": str(algorithm.mdp.model.device),
    }


def _shown(records: Sequence[Prompt], spec: RunSpec) -> dict[str, Any]:
    """Return the text of each evaluation image's prompt, and its metadata if any prompt has some."""
    evaluation = spec.config.evaluation
    shown = evaluation_prompts(records, evaluation.images, evaluation.images_per_prompt)
    metadata = [record.metadata for record in shown]
    return {"prompts": [record.text for record in shown]} | ({"metadata": metadata} if any(metadata) else {})


def make_algorithm(spec: RunSpec, checkpoint: Path | None = None) -> DiffusionAlgorithm[Any]:
    """Return a run's algorithm with its environment, as it begins or from a checkpoint."""
    task = spec.task
    env = gymnasium.make(
        diffusion_gym.ENV_ID,
        model=task.model,
        reward=task.reward,
        prompts=task.prompts,
        num_inference_steps=task.num_inference_steps,
        device=str(current_ranks().device(task.device)),
        dtype=task.dtype,
        prompt_tokens=spec.config.policy.trains_text,
        **ModelSettings.among(task).given,
    )
    cls = ALGORITHMS[spec.algorithm].cls
    return cls(env, spec.config) if checkpoint is None else cls.load(checkpoint, env)


def build(spec: RunSpec, folder: Path, checkpoint: str = CHECKPOINT) -> DiffusionAlgorithm[Any]:
    """Return a run's algorithm, from a checkpoint in its folder if there is one.

    Raises:
        ValueError: its model, prompts, reward or metrics cannot be used, or the checkpoint is damaged.
    """
    file = folder / checkpoint
    algorithm = make_algorithm(spec, file if file.exists() else None)
    tried = read_json(folder / RUN).get("chunk_size") if (folder / RUN).exists() else None
    if tried is not None:  # memory ran out with twice as many rows per forward pass
        algorithm.policy.chunk_size = min(algorithm.policy.chunk_size, tried)
    check_shown(spec, algorithm)
    return algorithm


def check_shown(spec: RunSpec, algorithm: DiffusionAlgorithm[Any]) -> None:
    """Raise ValueError where safeguards or metrics cannot use the prompts, which are known once the model is."""
    prompts, held_out = algorithm.mdp.prompts, spec.config.evaluation.held_out_prompts  # also the model's own
    spec.safeguards.check_prompts(prompts, spec.config.evaluation)
    if spec.metrics:
        check_worlds(spec.metrics, algorithm.mdp.model, [*prompts, *(resolve_prompts(held_out) if held_out else ())])
