"""``diffusion-gym pretrain``: makes the embedded models, emoji-animals and emoji-world, and what judges them."""

from collections.abc import Callable

from benchmarks.pretrain.config import PretrainConfig
from benchmarks.pretrain.emoji_world.config import WorldConfig
from benchmarks.runs.stopping import Stopped, status_of

__all__ = ["PretrainConfig", "WorldConfig", "pretrain", "pretrain_world"]


def pretrain(config: PretrainConfig) -> int:
    """Run every stage that is not finished yet, then write the pipeline's folder, its card and the judge; returns 0."""
    from diffusion_gym_torchvision import repair_torchvision

    repair_torchvision()  # before diffusers and transformers are imported
    from benchmarks.pretrain.stages import run_stages

    return _stoppable(lambda: run_stages(config))


def _stoppable(run: Callable[[], None]) -> int:
    """Run the stages and return 0; say how to resume them where the user stops them."""
    try:
        run()
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            "stopped at once; the same command resumes from the last checkpoint.", status_of(interrupt)
        ) from None
    return 0


def pretrain_world(config: WorldConfig) -> int:
    """Run every stage of emoji-world that is not finished yet, then write its folder and card; returns 0."""
    from diffusion_gym_torchvision import repair_torchvision

    repair_torchvision()  # before diffusers and transformers are imported
    from benchmarks.pretrain.emoji_world.stages import run_stages

    return _stoppable(lambda: run_stages(config))
