"""Building an algorithm: configuration, ranks, policy, and what its requirements add to it."""

from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from stable_baselines3.common.vec_env import VecEnv

from algorithms.checkpoints.state import SavedAlgorithm
from algorithms.config.algorithms import check_several
from algorithms.config.base import check_held_out, override
from algorithms.evaluation import Evaluation, deployed_policy
from algorithms.optimization import GradientSteps, check_optimizer
from algorithms.parallel.ranks import current_ranks
from algorithms.policy import DenoisingPolicy
from algorithms.reference import Reference
from algorithms.requirements import Requirements, check_config, check_ranks, no_density
from algorithms.sb3.algorithm import Config
from algorithms.sb3.callback_locals import CallbackLocals
from algorithms.sb3.vec_env import DenoiseVecEnv, find_mdp, model_of
from algorithms.seeding import Stream, derive_seed
from algorithms.weight_average import WeightAverage
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models.fingerprint import difference, fingerprint
from diffusion_gym.paths import user_path
from diffusion_gym.prompts import load_prompts
from diffusion_gym.rewards import WeightedSum, check_differentiable, reward_name


class BuiltAlgorithm(SavedAlgorithm[Config]):
    """An algorithm with its environment, policy and counters; ``base.py`` has its loop."""

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
        if _init_setup_model:  # a checkpoint may also be loaded beside another reward, to draw pictures
            self._check_reward(mdp)
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
        #: Polled during evaluations, which call no callbacks; True ends ``learn``.
        self.should_stop: Callable[[], bool] = lambda: False
        #: Whether an update is under way, or was left by an error: the weights are between two iterations.
        self.updating = False
        self._equal_rewards: set[str] = set()  # rewards that were warned of
        self._callback_locals = CallbackLocals()
        self.chunk_size_found = False

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
        self._needs = self.requires(self.config)
        # peft draws new adapters from the global generator; here they belong to the run's seed, and the user's
        # generator is left as it was.
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.config.seed, Stream.INITIAL_WEIGHTS))
            self.policy = DenoisingPolicy(
                self.mdp.model, self.mdp.num_inference_steps, self.config.policy, self.mdp.negative_prompts
            )
        self.ranks.share(self.policy.denoiser)
        self._check_noise()
        self.reference = Reference(self.policy) if self._needs.reference else None
        decay = self.config.ema_decay
        self.average = WeightAverage(self.policy.trainable_parameters(), decay) if decay else None
        loss_scaler = torch.amp.GradScaler(self.device.type, enabled=self.policy.computes_in_float16)
        self.gradient_steps = GradientSteps(self.ranks, self.config, loss_scaler, self.average)
        #: Counts of updates that were skipped because their gradient was not finite.
        self.skipped = self.gradient_steps.skipped
        self._check_held_out(self.mdp)
        if self.config.evaluation.deployed.is_on:
            deployed_policy(self.policy, self.config.evaluation.deployed)  # refuses what does not fit the model
        self.rollout_env = self._make_rollout_env(self.mdp)

    def _check_held_out(self, mdp: DenoisingMDP) -> None:
        """Raise ValueError for held-out prompts that are trained on, or that model or reward cannot use."""
        if self.config.evaluation.held_out_prompts is not None:
            check_held_out(mdp.prompts, self.config.evaluation)
            mdp.check(load_prompts(self.config.evaluation.held_out_prompts).records)

    def _check_reward(self, mdp: DenoisingMDP) -> None:
        """Raise ValueError for a reward without a gradient, or a single one, where the algorithm needs other."""
        needs, reward = self.requires(self.config), mdp.reward
        if needs.reward_gradient:
            check_differentiable(reward)
        if needs.several_rewards:
            terms = reward.terms if isinstance(reward, WeightedSum) else ()
            check_several(reward_name(reward), [term.weight for term in terms])

    def _check_noise(self) -> None:
        """Raise ValueError where no step has a density and the algorithm needs one."""
        if (self._needs.density or self.config.kl_to_start) and len(self.policy.trainable_steps) == 0:
            raise no_density(type(self).__name__, self._needs, self.config.policy.sampler, self.policy.noise_levels)

    def _make_rollout_env(self, mdp: DenoisingMDP) -> DenoiseVectorEnv:
        return DenoiseVectorEnv.sharing(mdp, self.config.num_envs // self.ranks.size, trusted=True)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train in another environment on the same model; its reward, prompts and steps are used from now on.

        Raises:
            ValueError: an environment of another model or number of steps, or with held-out prompts.
        """
        mdp = find_mdp(env, self.config.policy.trains_text)
        self._check_held_out(mdp)
        self._check_reward(mdp)
        reason = difference(fingerprint(self.mdp.model), fingerprint(mdp.model))
        if reason is not None or mdp.num_inference_steps != self.mdp.num_inference_steps:
            raise ValueError(
                f"the policy was built for {self.mdp.num_inference_steps} steps of {self.mdp.model.name!r}, the new "
                f"environment has {mdp.num_inference_steps} steps of {mdp.model.name!r}"
                f"{'' if reason is None else f', which is another: {reason}'}."
            )
        if mdp.negative_prompts != self.mdp.negative_prompts:
            has = "has" if mdp.negative_prompts else "has no"
            raise ValueError(
                f"the new environment {has} prompts with a 'negative_prompt', unlike the one that the policy was built "
                "for; make a new algorithm, or give some prompt a 'negative_prompt' in both or in none."
            )
        super().set_env(DenoiseVecEnv(mdp, self.config.num_envs), force_reset)
        self.rollout_env = self._make_rollout_env(mdp)
