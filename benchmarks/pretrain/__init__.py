"""``python -m benchmarks pretrain``: makes the embedded model emoji-animals and its judge from a seed."""

from benchmarks.pretrain.config import PretrainConfig
from benchmarks.runs.stopping import Stopped, status_of

__all__ = ["PretrainConfig", "pretrain"]


def pretrain(config: PretrainConfig) -> int:
    """Run every stage that is not finished yet, then write the pipeline's folder, its card and the judge; returns 0."""
    from diffusion_gym_torchvision import repair_torchvision

    repair_torchvision()  # before diffusers and transformers are imported
    from benchmarks.pretrain.stages import run_stages

    try:
        run_stages(config)
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            "stopped at once; the same command resumes from the last checkpoint.", status_of(interrupt)
        ) from None
    return 0
