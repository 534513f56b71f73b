"""The loop of every algorithm: sample a rollout, update the weights, log, evaluate; and what it leaves behind."""

import contextlib
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import gymnasium
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from algorithms.checkpoints.published import published
from algorithms.checkpoints.state import SavedAlgorithm
from algorithms.config.base import check_held_out, override
from algorithms.evaluation import Evaluation, calibrate_reward, evaluate
from algorithms.memory import PROBED_DEVICES, OutOfMemory, fit_chunk_size, is_out_of_memory, try_chunk
from algorithms.optimization import GradientSteps, check_optimizer
from algorithms.parallel.ranks import current_ranks
from algorithms.parallel.split import RowChunk, Split
from algorithms.policy import DenoisingPolicy
from algorithms.reference import Reference
from algorithms.requirements import Requirements as Requirements
from algorithms.requirements import check_config, check_ranks, no_density
from algorithms.rollout_metrics import BY_PROMPT, log_names, rollout_metrics, warn_of_equal_rewards
from algorithms.rollouts import Interrupted, OnStep, Rollout, SampledChunk, collect
from algorithms.sb3.algorithm import Config, check_learn_arguments
from algorithms.sb3.callback_locals import CallbackLocals, Step
from algorithms.sb3.vec_env import DenoiseVecEnv, find_mdp, model_of
from algorithms.seeding import Stream, derive_seed, prompt_order
from algorithms.weight_average import WeightAverage
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models.fingerprint import difference, fingerprint
from diffusion_gym.paths import user_path

Self = TypeVar("Self", bound="DiffusionAlgorithm[Any]")
#: The trained step counts as this many forwards: one forward, and a backward of twice its cost.
FORWARDS_PER_TRAINED_ROW = 3


class DiffusionAlgorithm(SavedAlgorithm[Config]):
    """Tunes a pretrained diffusion model toward the reward of a DiffusionDenoise environment.

    ``learn(total_timesteps)`` counts denoising steps: an iteration of n images takes n * num_inference_steps. All
    state is consistent between iterations; a checkpoint taken in the middle of a rollout is that of the iteration's
    start, so a resumed run equals one that never stopped.

    Started on several ranks (``accelerate launch``), each samples its share of the images and trains on it; the
    configuration's numbers are those of all ranks together, so the run is that of one process up to float32 rounding.

    A subclass gives ``config_class``, :meth:`requires` and :meth:`update`. It may replace :meth:`collect`,
    :meth:`sampling_weights` and :meth:`assign`, and keep state of its own with :meth:`extra_state` and
    :meth:`extra_tensors`.
    """

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
            device: where the environment of an id is made: "auto" on CUDA if available, None on the CPU. An
                environment that is given has its device already; another one than that or "auto" is refused.
            overrides: fields of the configuration that differ, or of the dataclasses in it (``guidance_scale=5.0``).
                The ``learning_rate`` may also be Stable-Baselines3's schedule, a function of the share of ``learn``'s
                steps that remains (1 to 0).

        Raises:
            TypeError: an unknown field, a config of another algorithm, or an environment of another kind.
            ValueError: a refused value, a sampler that the algorithm cannot train, an environment on another device or
                without the prompt tokens that training the text encoder needs, or more ranks than can share the work.
        """
        if config is not None and not isinstance(config, self.config_class):
            raise TypeError(f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(config).__name__}.")
        schedule = overrides.pop("learning_rate") if callable(overrides.get("learning_rate")) else None
        self.config: Config = (
            self.config_class.for_model(model_of(env), **overrides) if config is None else override(config, **overrides)
        )
        self.check_config(self.config)
        self.ranks = current_ranks()
        check_ranks(type(self).__name__, self.requires(self.config), self.config, self.ranks)
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
        self._init_counters()
        if _init_setup_model:
            self._setup_model()

    def _init_counters(self) -> None:
        self.iteration = self._committed_timesteps = 0
        self.costs = {"reward_queries": 0, "forward_equivalents": 0, "images": 0, "seconds": 0.0}
        self.last_evaluation: Evaluation | None = None
        self.last_rollout_reward: float | None = None
        #: Asked in evaluations, where callbacks are not called: True ends ``learn``, as a callback's False does.
        self.should_stop: Callable[[], bool] = lambda: False
        #: Whether an update is under way, or was left by an error: the weights are between two iterations.
        self.updating = False
        self._equal_rewards: set[str] = set()  # rewards that were warned of
        self._callback_locals = CallbackLocals()
        self._chunk_tried = False

    @classmethod
    def requires(cls, config: Config) -> Requirements:
        """Return what the algorithm needs with this configuration; a subclass adds to what ``super()`` returns."""
        return Requirements(reference=config.kl_to_start)

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Raise ValueError for a configuration that the algorithm cannot train with on any model."""
        check_config(cls.__name__, cls.requires(config), config)
        check_optimizer(config)

    def _setup_model(self) -> None:
        """Build the policy; subclasses add optimizer and statistics."""
        needs = self.requires(self.config)
        # peft draws new adapters from the global generator; here they belong to the run's seed, and the user's
        # generator is left as it was.
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.config.seed, Stream.INITIAL_WEIGHTS))
            self.policy = DenoisingPolicy(self.mdp.model, self.mdp.num_inference_steps, self.config.policy)
        self.ranks.share(self.policy.denoiser)
        if (needs.density or needs.reference) and len(self.policy.trainable_steps) == 0:
            raise no_density(type(self).__name__, needs, self.config)
        self.reference = Reference(self.policy) if needs.reference else None
        decay = self.config.ema_decay
        self.average = WeightAverage(self.policy.trainable_parameters(), decay) if decay else None
        loss_scaler = torch.amp.GradScaler(self.device.type, enabled=self.policy.computes_in_float16)
        self.gradient_steps = GradientSteps(self.ranks, self.config, loss_scaler, self.average)
        check_held_out(self.mdp.prompts, self.config.evaluation)
        self.rollout_env = self._make_rollout_env(self.mdp)

    def _make_rollout_env(self, mdp: DenoisingMDP) -> DenoiseVectorEnv:
        return DenoiseVectorEnv.sharing(mdp, self.config.num_envs // self.ranks.size, trusted=True)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train in another environment on the same model; its reward, prompts and steps are used from now on.

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
        self.rollout_env = self._make_rollout_env(mdp)

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
            TypeError, ValueError: arguments of another kind, before anything is sampled.
            RewardError: the reward failed; the iteration is dropped.
            DivergedError, OutOfMemory: too many gradients in a row were not finite; memory ran out.
            RankError: another rank failed or is lost.
        """
        check_learn_arguments(total_timesteps, callback, log_interval)
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._committed_timesteps, self.updating = self.num_timesteps, False
        self.update_learning_rate(total_timesteps)
        self._callback_locals = CallbackLocals(locals())
        callback.on_training_start(self._callback_locals, globals())  # type: ignore[arg-type]
        with self._unfinished_dropped(), self._memory_checked():
            if self.num_timesteps < total_timesteps:
                self._try_chunk_size()
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
        n = self.config.images_per_iteration
        first = self.iteration * n
        order = prompt_order(
            self.config.seed, len(self.mdp.prompts), self.config.images_per_prompt, first, n, self.mdp.prompt_weights
        )
        assigned = self.assign()
        images = assigned.flatten().tolist()
        callback.on_rollout_start()

        def on_step(step: Step) -> bool:
            self.num_timesteps += len(step) * self.ranks.size
            self._callback_locals.take(step)
            callback.update_locals(self._callback_locals)  # type: ignore[arg-type]
            return callback.on_step()

        with self.sampling_weights():
            rollout = collect(
                self.rollout_env,
                self.policy,
                [self.mdp.prompts[order[image]] for image in images],
                self.config.seed,
                [first + image for image in images],
                updates=len(assigned),
                whole_trajectory=self.requires(self.config).trajectory,
                on_step=on_step,
                score_beside=self.config.rewards_beside_sampling,
                split=Split(self.ranks, n),
            )
        callback.on_rollout_end()
        self._callback_locals.forget()
        self.costs["reward_queries"] += n
        self.costs["images"] += n
        self.costs["forward_equivalents"] += n * self.mdp.num_inference_steps * self.policy.forwards_per_row
        return rollout

    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Change the policy's weights; return what to log."""

    def sampling_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the policy has the weights that sample rollouts; by default those in training."""
        return contextlib.nullcontext()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the policy has the weights that are evaluated and exported: the moving average."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def assign(self) -> Tensor:
        """Return the iteration's images (u, k), int64, on the CPU: a row for each update that trains on sampled chunks.

        Images of one row are sampled side by side, those of two rows never in one forward pass.
        """
        return torch.arange(self.config.images_per_iteration)[None]

    # -- for updates --------------------------------------------------------------------------------------------------

    def sampled_chunks(
        self, rollout: Rollout, update: int = 0, steps: Callable[[slice], Sequence[int]] | None = None
    ) -> Iterator[SampledChunk]:
        """Yield this rank's transitions of one update as they were sampled.

        Args:
            rollout: with whole trajectories.
            update: which row of :meth:`assign`.
            steps: which steps of a chunk's images are trained on, equally many of each; None is all with a density.
        """
        trainable = self.policy.trainable_steps.tolist()
        return rollout.sampled_chunks(update, self.policy.chunk_size, steps or (lambda images: trainable))

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

    def count_rows(self, trained: int, guided: bool = True, reference: int = 0) -> None:
        """Add to the cost: rows trained, forward and backward, and rows of the starting model, forward alone.

        Args:
            trained: of all ranks.
            guided: whether the guided prediction was trained, which with guidance takes two forwards per row.
            reference: rows of the starting model.
        """
        forwards = self.policy.forwards_per_row if guided else 1
        self.costs["forward_equivalents"] += FORWARDS_PER_TRAINED_ROW * trained * forwards
        self.costs["forward_equivalents"] += reference * self.policy.forwards_per_row

    # -- around the loop ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _unfinished_dropped(self) -> Iterator[None]:
        """Take back counters of a rollout that was not finished; a request to stop ends quietly."""
        self._kept_costs = dict(self.costs)
        try:
            yield
        except Interrupted:
            self._drop_iteration()
        except BaseException:  # also Ctrl-C
            self._drop_iteration()
            raise

    def _drop_iteration(self) -> None:
        self.num_timesteps, self.costs = self._committed_timesteps, dict(self._kept_costs)

    def _commit(self, seconds: float) -> None:
        self.iteration += 1
        self._committed_timesteps = self.num_timesteps
        self.costs["seconds"] += seconds
        self._kept_costs = dict(self.costs)

    @contextlib.contextmanager
    def _memory_checked(self) -> Iterator[None]:
        """Raise OutOfMemory, which says what to do, in place of the allocator's error."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise OutOfMemory(self.iteration, self.policy.chunk_size, reason) from error

    def _try_chunk_size(self) -> None:
        """Halve the chunk size until one chunk can be sampled and trained. Collective."""
        if self._chunk_tried or self.ranks.sharded or self.device.type not in PROBED_DEVICES:
            return
        prompts = [""] * (self.config.images_per_iteration // self.ranks.size)
        whole = self.requires(self.config).trajectory
        trained = self.trained_parameters().values()
        fit_chunk_size(
            self.policy, lambda: try_chunk(self.policy, trained, lambda: Rollout.empty(self.policy, prompts, whole))
        )
        self.policy.chunk_size = min(self.ranks.gather_objects(self.policy.chunk_size))
        self._chunk_tried = True

    # -- logging and evaluation ---------------------------------------------------------------------------------------

    def _describe(self, rollout: Rollout) -> dict[str, float]:
        """Return the rollout's metrics, and note its rewards where Stable-Baselines3 looks for the latest episodes."""
        metrics = rollout_metrics(rollout, self.mdp.reward, by_prompt=len(self.mdp.prompts) <= BY_PROMPT)
        self.last_rollout_reward = metrics["rollout/ep_rew_mean"]
        if self.ranks.is_first:
            warn_of_equal_rewards(rollout, self.mdp.reward, self._equal_rewards)
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend({"r": r, "l": self.mdp.num_inference_steps} for r in rollout.rewards.tolist())
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
            "train/skipped_updates": steps.skipped,
        }
        for name, value in values.items():
            self.logger.record(name, value)
        self.logger.dump(step=self.num_timesteps)

    def log_names(self) -> dict[str, str]:
        """Return names in the log's keys -> the prompts and reward parts they stand for, where these differ."""
        return log_names(self.mdp.reward, self.mdp.prompts)

    def _evaluate_if_due(self, final: bool = False) -> None:
        config = self.config.evaluation
        done = self.last_evaluation is not None and self.last_evaluation.iteration == self.iteration
        if config.images == 0 or done or (self.iteration % config.every and not final):
            return
        going: OnStep = lambda step: not self.should_stop()  # noqa: E731
        with self.averaged():
            self.last_evaluation = evaluate(
                self.mdp, self.policy, self.config, self.iteration, self.reference, self.ranks, going
            )
        self._log(self.last_evaluation.metrics())

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the actions of the policy, with the averaged weights where there are any."""
        with self.averaged():
            return super().predict(*args, **kwargs)

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Write the tuned weights in diffusers' own format: a LoRA for ``load_lora_weights``, or a pipeline folder.

        With ``ema_decay`` they are the averaged weights. Collective: call on every rank; the first writes.

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
