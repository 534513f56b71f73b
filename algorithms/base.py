"""The loop of every algorithm: sample a rollout, update the weights, log, evaluate."""

import contextlib
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from algorithms.chunks import SampledChunk
from algorithms.evaluation import calibrate_reward, evaluate, evaluate_deployed
from algorithms.memory import OutOfMemory, find_chunk_size, is_out_of_memory
from algorithms.metrics import log_names, rollout_metrics, warn_of_equal_rewards
from algorithms.parallel.split import RowChunk, Split
from algorithms.policy import Rows
from algorithms.reference import Reference
from algorithms.requirements import Requirements as Requirements
from algorithms.rollouts import Rollout
from algorithms.sampling import OnStep, collect
from algorithms.sb3.algorithm import Config
from algorithms.sb3.callback_locals import CallbackLocals, Step
from algorithms.seeding import TRAINING_STREAMS, Noise, prompt_order
from algorithms.setup import BuiltAlgorithm
from algorithms.windows import Windows
from diffusion_gym.errors import Interrupted

Self = TypeVar("Self", bound="DiffusionAlgorithm[Any]")
#: The trained step counts as this many forwards: one forward, and a backward of twice its cost.
FORWARDS_PER_TRAINED_ROW = 3


class DiffusionAlgorithm(BuiltAlgorithm[Config]):
    """Tunes a pretrained diffusion model toward the reward of a DiffusionDenoise environment.

    ``learn(total_timesteps)`` counts denoising steps: an iteration of n images takes n * num_inference_steps. All
    state is consistent between iterations; a checkpoint taken in the middle of a rollout is that of the iteration's
    start, so a resumed run equals one that never stopped.

    Started on several ranks (``accelerate launch``), each samples its share of the images and trains on it; the
    configuration's numbers are those of all ranks together, so the run is that of one process up to float32 rounding
    (with ``timestep_fraction`` below 1, other chunks draw other steps).

    A subclass gives ``config_class``, :meth:`requires` and :meth:`update`. It may replace :meth:`collect`,
    :meth:`sampling_weights`, :meth:`assign`, :meth:`windows` and :meth:`noise`, and keep state of its own with
    :meth:`extra_state` and :meth:`extra_tensors`.
    """

    # -- learning ---------------------------------------------------------------------------------------------------

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train until ``total_timesteps`` denoising steps were taken (a lower bound: iterations are whole).

        Args:
            total_timesteps: denoising steps, images times num_inference_steps.
            callback: Stable-Baselines3 callback(s); ``on_step`` runs after each step of the environments.
            log_interval: iterations from one line of the log to the next.
            tb_log_name: name of the run for TensorBoard.
            reset_num_timesteps: False continues the count of the last ``learn`` (or of a loaded checkpoint).
            progress_bar: Stable-Baselines3's own progress bar.

        Raises:
            TypeError, ValueError: an invalid argument, before anything is sampled.
            RewardError: the reward failed; the iteration is dropped.
            DivergedError, OutOfMemory, MemoryError: gradients were not finite; memory ran out, or never sufficed.
            RankError: another rank failed or is lost.
        """
        total_timesteps, callback = self._begin_learning(
            total_timesteps, callback, log_interval, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._committed_timesteps = self.num_timesteps
        self._forget_interrupted_update()
        self._check_held_out(self.mdp)  # the reward may have been changed since
        self._check_reward(self.mdp)
        self.update_learning_rate(total_timesteps)
        self._callback_locals = CallbackLocals(locals())
        callback.on_training_start(self._callback_locals, globals())  # type: ignore[arg-type]
        with self._unfinished_dropped():
            if self.num_timesteps < total_timesteps:
                if not self.chunk_size_found:
                    find_chunk_size(self)
                if getattr(self.mdp.reward, "needs_calibration", False):
                    calibrate_reward(self.mdp, self.policy, self.config, self.ranks)
            while self.num_timesteps < total_timesteps:
                self._evaluate_if_due()
                started = time.perf_counter()
                rollout = self.collect(callback)
                self.update_learning_rate(total_timesteps)
                metrics = self._describe(rollout)
                self.updating = True
                with self.ranks.ending_together():
                    metrics |= self.update(rollout)
                self.updating = False
                self._commit(time.perf_counter() - started)
                if self.iteration % log_interval == 0:
                    self._log(metrics | {"train/chunk_size": self.policy.chunk_size})
            self._evaluate_if_due(final=True)
        callback.on_training_end()
        self._callback_locals = CallbackLocals()  # the former ones hold this algorithm and its callbacks
        return self

    def collect(self, callback: BaseCallback) -> Rollout:
        """Sample and score this iteration's images.

        Raises:
            Interrupted: a callback asked to stop.
        """
        if len(self.policy.trainable_steps) == 0:  # the noise levels may have been changed since
            self._check_noise()
        n = self.config.images_per_iteration
        first = self.iteration * n
        mdp, config, seed = self.mdp, self.config, self.config.seed
        order = prompt_order(seed, len(mdp.prompts), config.images_per_prompt, first, n, mdp.prompt_weights)
        assigned = self.assign()
        images = assigned.flatten().tolist()
        callback.on_rollout_start()
        split, numbers = Split(self.ranks, n), [first + image for image in images]

        def on_step(step: Step) -> bool:
            self.num_timesteps += len(step.latents) * self.ranks.size
            self._callback_locals.take(step)
            callback.update_locals(self._callback_locals)  # type: ignore[arg-type]
            return callback.on_step()

        rollout = collect(
            self.rollout_env,
            self.policy,
            [mdp.records[order[image]] for image in images],
            seed,
            numbers,
            updates=len(assigned),
            whole_trajectory=self._needs.trajectory,
            weights=self.sampling_weights,
            on_step=on_step,
            score_beside=config.rewards_beside_sampling,
            split=split,
            keeps_means=self._needs.means,
            windows=self.windows(images, split),
            noise=self.noise(numbers),
        )
        callback.on_rollout_end()
        self._callback_locals.forget()
        self.costs["reward_queries"] += n
        self.costs["images"] += n
        rows = rollout.rows_sampled(mdp.num_inference_steps)
        self.costs["forward_equivalents"] += rows * self.policy.forwards_per_row
        return rollout

    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Change the policy's weights; return what to log."""

    def sampling_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the policy has the weights that sample rollouts; by default those in training."""
        return contextlib.nullcontext()

    def assign(self) -> Tensor:
        """Return the iteration's images (u, k), int64, on the CPU: a row for each update that trains on sampled chunks.

        Images of one row are sampled side by side, those of two rows never in one forward pass.
        """
        return torch.arange(self.config.images_per_iteration)[None]

    def windows(self, images: Sequence[int], split: Split) -> Windows | None:
        """Return which steps of the iteration's images have noise of their own; by default all are drawn alike.

        Args:
            images: n, in the order of :meth:`assign`.
            split: which of them are kept on this rank.
        """
        return None

    def noise(self, images: Sequence[int]) -> Noise:
        """Return the random numbers of a rollout of images by their numbers in the run; by default each has its own."""
        return Noise(self.config.seed, TRAINING_STREAMS, images)

    # -- for updates --------------------------------------------------------------------------------------------------

    def sampled_chunks(
        self, rollout: Rollout, update: int = 0, draw: Callable[[slice], Sequence[int]] | None = None
    ) -> Iterator[SampledChunk]:
        """Yield this rank's transitions of one update as they were sampled.

        Args:
            rollout: with whole trajectories.
            update: which row of :meth:`assign`.
            draw: returns the steps of a chunk's images that are trained on, equally many for each chunk; None is all
                steps with a density.
        """
        steps = self.policy.trainable_steps.tolist()
        return rollout.sampled_chunks(update, self.policy.chunk_size, steps, draw)

    def row_chunks(self, rollout: Rollout, images: Tensor) -> Iterator[RowChunk]:
        """Yield this rank's rows of one update; ``images`` (k,), int64, is the image of each row."""
        return rollout.split.row_chunks(images, self.policy.chunk_size)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a chunk's loss to what is accumulated; in float16 the loss is scaled up first."""
        self.gradient_steps.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the accumulated gradients, summed over ranks, and step; return their norm before clipping. Collective.

        Raises:
            DivergedError: more than ``config.max_skipped_updates`` updates in a row had no finite gradient.
        """
        norm = self.gradient_steps.step(optimizer)
        self._n_updates = self.gradient_steps.made
        return norm

    def train_blank(self, rows: Rows) -> None:
        """Make the forward and backward passes of a chunk of zeros, as training does: probes measure their memory."""
        self.policy.distribution(rows).mean.sum().backward()

    def count_rows(self, trained: int, guided: bool = True, reference: int = 0) -> None:
        """Add to the cost: rows trained, forward and backward, and rows of models that are not trained, only forward.

        Args:
            trained: of all ranks.
            guided: whether predictions were guided, which with guidance takes two forwards per row.
            reference: rows of the starting model, or of another one that is not trained.
        """
        forwards = self.policy.forwards_per_row if guided else 1
        self.costs["forward_equivalents"] += FORWARDS_PER_TRAINED_ROW * trained * forwards
        self.costs["forward_equivalents"] += reference * forwards

    # -- around the loop ----------------------------------------------------------------------------------------------

    def _forget_interrupted_update(self) -> None:
        """Warn if the last update was interrupted, and drop its gradients."""
        if self.updating:
            warnings.warn(
                "the last update was interrupted, so training continues from weights between two iterations; to resume "
                "exactly, load the last checkpoint instead.",
                stacklevel=3,
            )
            self.policy.zero_grad(set_to_none=True)
        self.updating = False

    @contextlib.contextmanager
    def _unfinished_dropped(self) -> Iterator[None]:
        """Take back counters of an iteration that was not finished; a request to stop ends quietly.

        Raises:
            OutOfMemory: in the place of the allocator's error.
        """
        self._kept_costs = dict(self.costs)
        try:
            yield
        except BaseException as error:  # also Ctrl-C
            self.num_timesteps, self.costs = self._committed_timesteps, dict(self._kept_costs)
            if is_out_of_memory(error):
                raise OutOfMemory(self.iteration, self.policy.chunk_size, error) from error
            if not isinstance(error, Interrupted):
                raise

    def _commit(self, seconds: float) -> None:
        self.iteration += 1
        self._committed_timesteps = self.num_timesteps
        self.costs["seconds"] += seconds
        self._kept_costs = dict(self.costs)

    # -- logging and evaluation ---------------------------------------------------------------------------------------

    def _describe(self, rollout: Rollout) -> dict[str, float]:
        """Return the rollout's metrics, and note its rewards where Stable-Baselines3 looks for the latest episodes."""
        mdp = self.mdp
        reward = mdp.reward
        metrics = rollout_metrics(rollout, reward, mdp.prompt_set)
        self.last_rollout_reward = metrics["rollout/ep_rew_mean"]
        if self.ranks.is_first:
            warn_of_equal_rewards(rollout, reward, self._equal_rewards)
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend({"r": r, "l": mdp.num_inference_steps} for r in rollout.rewards.tolist())
        return metrics

    def dump_logs(self, iteration: int = 0) -> None:
        """Write a line of the log now, as LogEveryNTimesteps does; :meth:`learn` counts iterations."""
        episodes = [episode["r"] for episode in self.ep_info_buffer or ()]
        self._log({"rollout/ep_rew_mean": sum(episodes) / len(episodes)} if episodes else {})

    def _log(self, metrics: Mapping[str, float]) -> None:
        steps = self.gradient_steps
        values = {
            **metrics,
            **{f"cost/{name}": value for name, value in self.costs.items()},
            "time/iterations": self.iteration,
            "time/total_timesteps": self.num_timesteps,
            "train/learning_rate": self._current_rate,
            "train/n_updates": self._n_updates,
            **({"train/loss_scale": steps.loss_scaler.get_scale()} if steps.loss_scaler.is_enabled() else {}),
            "train/skipped_updates": steps.skipped.total,
        }
        for name, value in values.items():
            self.logger.record(name, value)
        self.logger.dump(step=self.num_timesteps)

    def log_names(self) -> dict[str, str]:
        """Return names in the log's keys -> the prompts and reward parts they stand for, where these differ."""
        return log_names(self.mdp.reward, self.mdp.prompt_set)

    def _evaluate_if_due(self, final: bool = False) -> None:
        config = self.config.evaluation
        done = self.last_evaluation is not None and self.last_evaluation.iteration == self.iteration
        if config.images == 0 or done or (self.iteration % config.every and not final):
            return
        going: OnStep = lambda step: not self.should_stop()  # noqa: E731
        deployed = config.deployed.is_on and (final or self.iteration == 0 or config.deployed.always)
        with self.averaged():
            what = self.mdp, self.policy, self.config, self.iteration
            evaluation = evaluate(*what, self.kl_reference, self.ranks, going)
            if deployed:
                evaluation = replace(evaluation, deployed=evaluate_deployed(*what, self.ranks, going))
        self.last_evaluation = evaluation
        self._log(evaluation.metrics())

    @property
    def kl_reference(self) -> Reference | None:
        """The starting model where evaluations measure the KL to it: where it is kept and some step has a density."""
        return self.reference if len(self.policy.trainable_steps) else None

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the actions of the policy, with the averaged weights where there are any."""
        with self.averaged():
            return super().predict(*args, **kwargs)
