"""The shell of every algorithm: Stable-Baselines3's learn, callbacks, logger, save, load and predict."""

import contextlib
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from algorithms.checkpoints.published import published
from algorithms.checkpoints.state import SavedAlgorithm
from algorithms.config.base import check_held_out, divisor, override
from algorithms.evaluation import (
    Evaluation,
    calibrate_reward,
    evaluate,
    part_name,
    rollout_metrics,
    warn_of_equal_rewards,
)
from algorithms.optimizers import check_optimizer
from algorithms.parallel.ranks import RanksOutOfMemory, current_ranks, synchronising
from algorithms.parallel.sharding import whole
from algorithms.parallel.split import Chunk, Part, Split
from algorithms.parallel.within_memory import is_out_of_memory, within_memory
from algorithms.policy import DenoisingPolicy
from algorithms.reference import Reference
from algorithms.rollouts import Interrupted, OnStep, Rollout, collect, rescore
from algorithms.sb3.callback_locals import CallbackLocals, Step
from algorithms.sb3.learn_checks import check_learn_arguments, unobserved
from algorithms.sb3.learning_rate import Config
from algorithms.sb3.vec_env import DenoiseVecEnv, find_mdp, model_of
from algorithms.seeding import Stream, derive_seed, prompt_order
from algorithms.skips import SkippedUpdates
from algorithms.weight_average import WeightAverage
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models.fingerprint import difference, fingerprint
from diffusion_gym.naming import log_name
from diffusion_gym.paths import user_path
from diffusion_gym.rewards import WeightedSum

Self = TypeVar("Self", bound="DiffusionAlgorithm[Any]")
_Part = TypeVar("_Part", Part, Chunk)
#: The trained step counts as this many forwards: one forward, and a backward of twice its cost.
FORWARDS_PER_TRAINED_ROW = 3
_PROMPTS_LOGGED = 16  # above this many prompts, per-prompt means would drown the log


@dataclass(frozen=True)
class Requirements:
    """What an algorithm needs; checked before a run starts, and what decides how much a rollout stores."""

    whole_trajectory: bool
    """All latents and log-probabilities, or the finished images alone."""
    stochastic: bool
    """Steps with a density: eta 0 is refused."""
    reference: bool = False
    """The starting model beside the policy, as ``self.reference``."""
    average: bool = False
    """The moving average of the weights, as ``self.average``: ``ema_decay`` 0 is refused."""


class DiffusionAlgorithm(SavedAlgorithm[Config]):
    """Tunes a pretrained diffusion model toward the reward of a DiffusionDenoise environment.

    ``learn(total_timesteps)`` counts denoising steps: an iteration of n images takes n * num_inference_steps. All
    state is consistent between iterations; a checkpoint taken in the middle of a rollout is that of the iteration's
    start, so a resumed run equals one that never stopped.

    Started on several ranks (``accelerate launch``), each denoises its share of the images and trains on it; the
    configuration's numbers are those of all ranks together, so the run is that of one process up to float32 rounding.

    A subclass gives ``config_class``, ``requires`` and :meth:`update`.
    """

    requires: ClassVar[Requirements]
    #: Whether :meth:`update` goes through its rows with :meth:`parts` or :meth:`sampled_chunks`, which ranks share.
    splits_over_ranks: ClassVar[bool] = False

    def __init__(
        self,
        env: str | gymnasium.Env | gymnasium.vector.VectorEnv | VecEnv,
        config: Config | None = None,
        *,
        verbose: int = 0,
        tensorboard_log: str | None = None,
        device: torch.device | str | None = "auto",
        _init_setup_model: bool = True,
        **overrides: Any,
    ) -> None:
        """Build the policy on the environment's model.

        Args:
            env: an environment's id, or a DiffusionDenoise environment, single or vectorised (also as DummyVecEnv or
                SyncVectorEnv). Its model, reward (also one that is set later), prompts and number of steps are used;
                rollouts run ``config.num_envs`` side by side.
            config: the algorithm's configuration, used as it is; None takes what the environment's model recommends.
            verbose: 1 prints the log to the terminal.
            tensorboard_log: folder for TensorBoard events.
            device: where the environment of an id is made: "auto" on CUDA where there is, None on the CPU. An
                environment that is given has its device already; another than that or "auto" is refused.
            overrides: fields of the configuration that differ, or of the dataclasses in it (``guidance_scale=5.0``).
                The ``learning_rate`` may also be Stable-Baselines3's schedule, a function of the share of ``learn``'s
                steps that remains (1 to 0).

        Raises:
            TypeError: an unknown field, a config of another algorithm, or an environment of another kind.
            ValueError: a value that is refused, a sampler that the algorithm cannot train, an environment on another
                device or without the prompt tokens that training the text encoder needs, or more ranks than can share
                the work.
        """
        if config is not None and not isinstance(config, self.config_class):
            raise TypeError(f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(config).__name__}.")
        schedule = overrides.pop("learning_rate") if callable(overrides.get("learning_rate")) else None
        self.config: Config = (
            self.config_class.for_model(model_of(env), **overrides) if config is None else override(config, **overrides)
        )
        self.check_config(self.config)
        check_optimizer(self.config)
        self.ranks = current_ranks()
        self._check_ranks()
        where = self.ranks.device(device) if isinstance(env, str) else device
        mdp = find_mdp(env, self.config.policy.trains_text, where)
        super().__init__(
            DenoisingPolicy,  # type: ignore[arg-type]
            DenoiseVecEnv(mdp, self.config.num_envs),
            self.config.learning_rate if schedule is None else schedule,
            tensorboard_log=str(user_path(tensorboard_log)) if tensorboard_log and self.ranks.is_first else None,
            verbose=verbose if self.ranks.is_first else 0,
            device=mdp.model.device,
            support_multi_env=True,
            seed=self.config.seed,
        )
        self.iteration = 0
        self.costs = {"reward_queries": 0, "forward_equivalents": 0, "images": 0, "seconds": 0.0}
        self.skipped = SkippedUpdates()
        self.last_evaluation: Evaluation | None = None
        self.last_rollout_reward: float | None = None
        #: Called after every chunk's backward pass: updates are long, and a progress bar should not stand still.
        self.after_backward: Callable[[], None] = lambda: None
        #: Asked in the middle of updates and evaluations, where callbacks are not: True ends ``learn``, as a callback
        #: does that returns False. An update of sharded weights, of which there is no second copy, is made to its end.
        self.should_stop: Callable[[], bool] = lambda: False
        self._told_equal: set[str] = set()
        self._committed_timesteps = 0
        self._callback_locals = CallbackLocals()
        self._exchanging = False  # gradients, with ranks that could not be told of memory running out
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Return the environment as a VecEnv; Stable-Baselines3's own wrapping does not know Gymnasium's VectorEnv."""
        if isinstance(env, DenoiseVecEnv):
            return env
        mdp = find_mdp(env)
        return DenoiseVecEnv(mdp, mdp.num_envs)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the images and updates that follow, and, as in Stable-Baselines3, the global generators."""
        if seed is not None:
            self.config = override(self.config, seed=seed)
            self.seed = seed
        super().set_random_seed(seed)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on in another environment on the same model; its reward, prompts and steps are used from now on.

        Raises:
            ValueError: an environment of another model or number of steps, or with held-out prompts.
        """
        mdp = find_mdp(env, self.config.policy.trains_text)
        check_held_out(mdp.prompts, self.config.evaluation)
        reason = difference(fingerprint(self.mdp.model), fingerprint(mdp.model))
        if reason is not None or mdp.num_inference_steps != self.mdp.num_inference_steps:
            raise ValueError(
                f"the policy was built for {self.mdp.num_inference_steps} steps of {self.mdp.model.name!r}, the new "
                f"environment has {mdp.num_inference_steps} steps of {mdp.model.name!r}"
                f"{'' if reason is None else f', which is another: {reason}'}."
            )
        super().set_env(DenoiseVecEnv(mdp, self.config.num_envs), force_reset)
        self.rollout_env = DenoiseVectorEnv.sharing(mdp, self.config.num_envs // self.ranks.size, late_checks=True)

    def _setup_model(self) -> None:
        """Build the policy; subclasses add optimizer and statistics."""
        # peft draws new adapters from the global generator; here they belong to the run's seed, and the user's
        # generator is left as it was.
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.config.seed, Stream.INITIAL_WEIGHTS))
            self.policy = DenoisingPolicy(self.mdp.model, self.mdp.num_inference_steps, self.config.policy)
        self.policy.denoiser = self.ranks.wrap(self.policy.denoiser)
        self._check_grid()
        self.reference = Reference(self.policy) if self.needs.reference else None
        trained, decay = self.policy.trainable_parameters(), self.config.ema_decay
        self.average = WeightAverage(trained, decay) if decay else None
        self.loss_scaler = self._make_loss_scaler()
        check_held_out(self.mdp.prompts, self.config.evaluation)
        self.rollout_env = DenoiseVectorEnv.sharing(self.mdp, self.config.num_envs // self.ranks.size, late_checks=True)

    def _check_ranks(self) -> None:
        """Refuse more ranks than can share the environments equally, and an algorithm that does not share its rows."""
        size, envs = self.ranks.size, self.config.num_envs
        if size > 1 and not self.splits_over_ranks:
            raise ValueError(
                f"{type(self).__name__} was started on {size} ranks, but its update does not share its rows among "
                "them; start one process, or let it use parts() or sampled_chunks() and set splits_over_ranks "
                "(docs/several-gpus.md)."
            )
        if self.ranks.sharded and self.config.optimizer == "adamw8bit":
            raise ValueError(
                "optimizer 'adamw8bit' does not know sharded weights (FSDP); take 'adamw', or launch with --multi_gpu."
            )
        if envs % size:
            raise ValueError(
                f"num_envs ({envs}) must be a multiple of the number of ranks ({size}), which share the environments; "
                f"start {divisor(envs, size)} instead, or choose another num_envs."
            )

    @property
    def needs(self) -> Requirements:
        """What the algorithm requires in its present configuration."""
        return self.requirements(self.config)

    @classmethod
    def requirements(cls, config: Config) -> Requirements:
        """What the algorithm requires with this configuration; a subclass may add to ``requires``."""
        return replace(cls.requires, reference=True) if config.kl_to_start else cls.requires

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse, without a model, a configuration that the algorithm cannot train with on any.

        Raises:
            ValueError: a sampler without noise where steps need a density, or no moving average where one is needed.
        """
        needs, policy = cls.requirements(config), config.policy
        if (needs.stochastic or needs.reference) and policy.sampler != "ddpm" and policy.eta == 0:
            raise ValueError(cls._no_density(config))
        if needs.average and config.ema_decay == 0:
            raise ValueError(
                f"{cls.__name__} needs the moving average of the weights, but ema_decay is 0; set it, for example to "
                "0.9."
            )

    def _check_grid(self) -> None:
        """Refuse a grid of the model's schedule that has no step to train."""
        if (self.needs.stochastic or self.needs.reference) and len(self.policy.trainable_steps) == 0:
            raise ValueError(self._no_density(self.config))

    @classmethod
    def _no_density(cls, config: Config) -> str:
        who = cls.__name__ if cls.requires.stochastic else "The KL to the starting model"
        return (
            f"{who} needs a stochastic sampler, but with sampler={config.policy.sampler!r} and eta={config.policy.eta} "
            "no step has a density; set eta > 0 (DDPO uses 1, Flow-GRPO 0.7) and at least 2 steps."
        )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """Prepare as Stable-Baselines3 does, but observe nothing: rollouts do not pass through its environment."""
        with unobserved(self):
            total, _ = super()._setup_learn(total_timesteps, None, reset_num_timesteps, tb_log_name)
        return total, self._init_callback(callback, progress_bar)

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
            reset_num_timesteps: False counts on from where the last ``learn`` (or a loaded checkpoint) stopped.
            progress_bar: Stable-Baselines3's own progress bar.

        Raises:
            TypeError, ValueError: arguments of another kind, before anything is sampled.
            RewardError: the reward failed; the iteration it failed in never happened.
            DivergedError: too many gradients in a row were not finite.
            RankError: another rank failed or is lost.
        """
        check_learn_arguments(total_timesteps, callback, log_interval)
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._committed_timesteps = self.num_timesteps
        self.update_learning_rate(total_timesteps)
        self._callback_locals = CallbackLocals(locals())
        callback.on_training_start(self._callback_locals, globals())  # type: ignore[arg-type]
        if self.num_timesteps < total_timesteps:
            within_memory(self.policy, lambda: calibrate_reward(self.mdp, self.policy, self.config, self.ranks))
        costs = dict(self.costs)
        try:
            while self.num_timesteps < total_timesteps:
                self._evaluate_if_due()
                started = time.perf_counter()
                rollout = self._collect(callback)
                self.update_learning_rate(total_timesteps)
                metrics = rollout_metrics(rollout, self.mdp.reward, by_prompt=len(self.mdp.prompts) <= _PROMPTS_LOGGED)
                self.last_rollout_reward = metrics["rollout/ep_rew_mean"]
                if self.ranks.is_first:
                    warn_of_equal_rewards(rollout, self.mdp.reward, self._told_equal)
                self._count_episodes(rollout)
                metrics |= self._update_within_memory(rollout) | {"train/chunk_size": self.policy.chunk_size}
                self.iteration += 1
                self._committed_timesteps = self.num_timesteps
                self.costs["seconds"] += time.perf_counter() - started
                costs = dict(self.costs)
                if self.iteration % log_interval == 0:
                    self._log(metrics)
            self._evaluate_if_due(final=True)
        except (Interrupted, KeyboardInterrupt) as interrupt:  # the iteration never happened
            self._forget_rollout()
            self.costs = costs
            if isinstance(interrupt, KeyboardInterrupt):
                raise
        callback.on_training_end()
        self._callback_locals = CallbackLocals()  # the former ones hold this algorithm and its callbacks
        return self

    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Change the policy's weights; return what to log."""

    def assign(self) -> Tensor:
        """The iteration's images (u, k), int64, on the CPU: a row for each update that trains on sampled chunks.

        Images of one row are sampled side by side, those of two rows never in one forward pass.
        """
        return torch.arange(self.config.images_per_iteration)[None]

    def parts(self, rollout: Rollout, images: Tensor) -> Iterator[Part]:
        """Yield this rank's rows of one update, a chunk at a time; the last one's backward pass synchronises gradients.

        Args:
            rollout: of all ranks.
            images: (k,), int64, the image of each row of the update.

        Raises:
            RanksOutOfMemory: memory ran out on another rank; no gradient was exchanged yet.
        """
        return self._synchronised(rollout.split.parts(images, self.policy.chunk_size))

    def sampled_chunks(
        self, rollout: Rollout, update: int = 0, steps: Callable[[slice], Sequence[int]] | None = None
    ) -> Iterator[Chunk]:
        """Yield this rank's transitions of one update as they were sampled; otherwise as :meth:`parts`.

        Args:
            rollout: of all ranks, with whole trajectories.
            update: which row of :meth:`assign`.
            steps: which steps of a chunk are trained on, equally many of each; None takes all that have a density.

        Raises:
            RanksOutOfMemory: as :meth:`parts`.
        """
        trainable = self.policy.trainable_steps.tolist()
        chosen = (lambda images: trainable) if steps is None else steps
        return self._synchronised(rollout.training_chunks(update, self.policy.chunk_size, chosen))

    def _synchronised(self, parts: Iterator[_Part]) -> Iterator[_Part]:
        self._exchanging = False
        for part in parts:
            if part.synchronises and self.ranks.votes:
                self._vote()
                self._exchanging = True
            with synchronising(self.policy.denoiser, part.synchronises):
                yield part

    def _vote(self, error: RuntimeError | None = None) -> None:
        """Tell the other ranks whether memory sufficed here; RanksOutOfMemory is raised on all if any one's did not."""

        def tell() -> None:
            if error is not None:
                raise error

        self.ranks.call(tell)

    def _collect(self, callback: BaseCallback) -> Rollout:
        """Sample this iteration's images.

        Raises:
            Interrupted: a callback asked to stop.
        """
        n = self.config.images_per_iteration
        first = self.iteration * n
        prompts, weights = self.mdp.prompts, self.mdp.prompt_weights
        order = prompt_order(self.config.seed, len(prompts), self.config.images_per_prompt, first, n, weights)
        assigned = self.assign()
        images = assigned.flatten().tolist()
        callback.on_rollout_start()

        def on_step(step: Step) -> bool:
            self.num_timesteps += len(step) * self.ranks.size
            self._callback_locals.take(step)
            callback.update_locals(self._callback_locals)  # type: ignore[arg-type]
            return callback.on_step()

        try:
            rollout = within_memory(
                self.policy,
                lambda: collect(
                    self.rollout_env,
                    self.policy,
                    [prompts[order[image]] for image in images],
                    self.config.seed,
                    [first + image for image in images],
                    updates=len(assigned),
                    whole_trajectory=self.requires.whole_trajectory,
                    on_step=on_step,
                    score_beside=self.config.rewards_beside_sampling,
                    split=Split(self.ranks, n),
                ),
                self._forget_rollout,
            )
            callback.on_rollout_end()
            self._callback_locals.forget()
        except BaseException:  # also Ctrl-C
            self._forget_rollout()
            raise
        self.costs["reward_queries"] += n
        self.costs["images"] += n
        self.costs["forward_equivalents"] += n * self.mdp.num_inference_steps * self.policy.forwards_per_row
        return rollout

    def _count_episodes(self, rollout: Rollout) -> None:
        """Put the images where Stable-Baselines3's users look for the latest episodes."""
        assert self.ep_info_buffer is not None
        steps = self.mdp.num_inference_steps
        self.ep_info_buffer.extend({"r": reward, "l": steps} for reward in rollout.rewards.tolist())

    def _forget_rollout(self) -> None:
        """An unfinished rollout never happened."""
        self.num_timesteps = self._committed_timesteps

    def _update_within_memory(self, rollout: Rollout) -> dict[str, float]:
        """Update; where memory runs out, take everything back and update in smaller chunks.

        The stored log-probabilities are then computed again in those chunks, by the weights that sampled, so that the
        first ratios are exactly 1 again. With DDP every rank does so if one must; with sharded weights the run ends,
        for the others wait in the middle of a pass.
        """
        if self.ranks.sharded:
            with self.ranks.ending_together():
                return self.update(rollout)
        sampled_in, timesteps = self.policy.chunk_size, self.num_timesteps
        before = self._snapshot()

        def update() -> dict[str, float]:
            with self.ranks.ending_together():
                return self._voting(lambda: self._rescored_update(rollout, sampled_in))

        def undo() -> None:
            self._restore(before)
            self.num_timesteps = timesteps
            self.policy.zero_grad(set_to_none=True)

        try:
            return within_memory(self.policy, update, undo)
        except (Interrupted, KeyboardInterrupt):
            undo()
            raise

    def _rescored_update(self, rollout: Rollout, sampled_in: int) -> dict[str, float]:
        if self.policy.chunk_size != sampled_in:
            rescore(rollout, self.policy)
        return self.update(rollout)

    def _voting(self, update: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Update; where memory runs out while the other ranks can be told, raise RanksOutOfMemory on all."""
        self._exchanging = False
        try:
            return update()
        except RanksOutOfMemory:
            raise
        except RuntimeError as error:
            if self.ranks.votes and not self._exchanging and is_out_of_memory(error):
                self._vote(error)
            raise

    def count_training_rows(self, rows: int, guided: bool = True) -> None:
        """Add ``rows`` trained forwards and backwards to the cost, of the guided prediction where there is guidance."""
        forwards = self.policy.forwards_per_row if guided else 1
        self.costs["forward_equivalents"] += FORWARDS_PER_TRAINED_ROW * rows * forwards

    def count_reference_rows(self, rows: int) -> None:
        """Add ``rows`` forwards of the starting model to the cost."""
        self.costs["forward_equivalents"] += rows * self.policy.forwards_per_row

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Let the policy have the weights that are evaluated and exported: their moving average, where there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the actions of the policy, with the averaged weights where there are any."""
        with self.averaged():
            return super().predict(*args, **kwargs)

    def gradient_step(self, optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> Tensor:
        """Accumulate the gradients of the losses' sum, clip, step; return the norm before clipping.

        In float16 the losses are scaled up, and a gradient that overflows halves the scale.

        Raises:
            DivergedError, Interrupted: as :meth:`step`.
        """
        for loss in losses:
            self.loss_scaler.scale(loss).backward()
            self.after_backward()
            if self.ranks.size == 1:
                self._stop_if_asked()
        return self.step(optimizer)

    def _stop_if_asked(self) -> None:
        """Raise Interrupted in an update, on all ranks at once, where one of them is asked to stop."""
        if not self.ranks.sharded and not self.ranks.all(not self.should_stop()):
            raise Interrupted

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the gradients that are there, and step; return the norm before clipping.

        A gradient that is not finite skips the update: weights and moments stay as they were.

        Raises:
            DivergedError: more than ``config.max_skipped_updates`` were skipped in a row, overflows not counted.
            Interrupted: ``should_stop`` said so; the iteration is taken back.
        """
        self._stop_if_asked()
        self.loss_scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        finite, scale = bool(norm.isfinite()), self.loss_scaler.get_scale()
        if finite:
            self.loss_scaler.step(optimizer)
            if self.average is not None:
                self.average.update()
            self._n_updates += 1
            self.skipped.made()
        self.loss_scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if not finite and scale > 1:
            self.skipped.total += 1  # the scale was too large for float16, and is smaller now
        elif not finite:
            self.skipped.skip(float(norm), self.config.max_skipped_updates)
        return norm

    # -- logging and evaluation -------------------------------------------------------------------------------------

    def dump_logs(self, iteration: int = 0) -> None:
        """Write a line of the log now, as LogEveryNTimesteps does; it is :meth:`learn` that counts iterations."""
        episodes = [episode["r"] for episode in self.ep_info_buffer or ()]
        self._log({"rollout/ep_rew_mean": sum(episodes) / len(episodes)} if episodes else {})

    def _log(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.logger.record(name, value)
        for name, value in self.costs.items():
            self.logger.record(f"cost/{name}", value)
        self.logger.record("time/iterations", self.iteration)
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.record("train/learning_rate", self._current_rate)
        self.logger.record("train/n_updates", self._n_updates)
        if self.loss_scaler.is_enabled():
            self.logger.record("train/loss_scale", self.loss_scaler.get_scale())
        self.logger.record("train/skipped_updates", self.skipped.total)
        self.logger.dump(step=self.num_timesteps)

    def _evaluate_if_due(self, final: bool = False) -> None:
        config = self.config.evaluation
        done = self.last_evaluation is not None and self.last_evaluation.iteration == self.iteration
        if config.images == 0 or done or (self.iteration % config.every and not final):
            return
        going: OnStep = lambda step: not self.should_stop()  # noqa: E731
        with self.averaged():
            self.last_evaluation = within_memory(
                self.policy,
                lambda: evaluate(self.mdp, self.policy, self.config, self.iteration, self.reference, self.ranks, going),
            )
        self._log(self.last_evaluation.metrics())

    def log_names(self) -> dict[str, str]:
        """Return what the log's keys call prompts and parts of the reward -> their texts, where these differ."""
        parts = self.mdp.reward.names if isinstance(self.mdp.reward, WeightedSum) else []
        prompts = self.mdp.prompts if len(self.mdp.prompts) <= _PROMPTS_LOGGED else []
        called = {**{log_name(text): text for text in prompts}, **{part_name(text): text for text in parts}}
        return {name: text for name, text in called.items() if name != text}

    # -- export -------------------------------------------------------------------------------------------------------

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write the tuned weights in diffusers' own format: a LoRA for ``load_lora_weights``, or a pipeline folder.

        With ``ema_decay`` they are the averaged ones. Collective: call on every rank; the first writes.

        Raises:
            ValueError: a file in the way that no export wrote, or that was changed since; nothing is replaced then.
        """
        target = user_path(folder)
        with self.averaged():
            with self.ranks.ending_together():
                denoiser: Any = self.policy.whole_denoiser()

            def write() -> None:
                with published(target) as fresh:
                    self.policy.model.export(denoiser, fresh, self.policy.lora)

            self.ranks.first(write)
