"""The options of ``gpu_report``, and the cases that they ask for; importable without torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diffusion_gym.choices import ModelDtype

ModelName = Literal["sd15", "sdxl", "sd35-medium"]
Variant = Literal["plain", "checkpointing", "channels_last", "compile"]
_SETTINGS: dict[Variant, tuple[str, ...]] = {
    "plain": (),
    "checkpointing": ("gradient_checkpointing",),
    "channels_last": ("channels_last",),
    "compile": ("compile",),
}


@dataclass(frozen=True)
class Case:
    """What is measured at once; the fields are those of the policy's configuration."""

    chunk_size: int
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False

    def describe(self) -> str:
        """Return "chunk 8, compile"."""
        return ", ".join([f"chunk {self.chunk_size}", *(name for name, on in asdict(self).items() if on is True)])


@dataclass(frozen=True)
class GpuReport:
    """Measure sampling and training of models at true size with random weights, in a given time; nothing is downloaded.

    For each case: images per second, the share of the device's measured bfloat16 peak, peak memory, and a floor of the
    same forwards and backwards alone. What memory or time does not allow is listed with its reason.
    """

    minutes: float = 10.0
    """Time for all models, each an equal share; no case begins after it, and a compiled one may take longer."""
    models: tuple[ModelName, ...] = ("sd15", "sdxl", "sd35-medium")
    """Which models."""
    chunk_sizes: tuple[int, ...] = (8, 16, 4, 32, 2, 1)
    """Rows per forward pass, the most important first; the first is measured with every variant."""
    variants: tuple[Variant, ...] = ("plain", "checkpointing", "channels_last", "compile")
    """Settings beside plain LoRA; at the end all of them are measured together."""
    dtype: ModelDtype = "bfloat16"
    """Precision of the frozen networks."""
    steps: int = 4
    """Denoising steps per image."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto, a CUDA GPU if there is one, else the CPU."""
    tiny: bool = False
    """The same on tiny models, which shows in seconds that it works; no figure of it means anything."""
    output: Path = Path("runs/gpu_report.json")
    """File of the raw numbers (JSON); the table is written next to it, as Markdown."""

    def __post_init__(self) -> None:
        """Refuse mistakes before anything is loaded."""
        if self.minutes < 0 or self.steps < 2 or not self.chunk_sizes or min(self.chunk_sizes) < 1:
            raise ValueError(
                "expected minutes >= 0, steps >= 2 and chunk sizes >= 1, got "
                f"{self.minutes:g}, {self.steps} and {self.chunk_sizes}."
            )
        if self.output.suffix == ".md":
            raise ValueError(f"output {str(self.output)!r} is where the table goes; name the file of the raw numbers.")

    def cases(self) -> list[Case]:
        """Return the cases of a model, the most important first."""
        on = {variant: dict.fromkeys(_SETTINGS[variant], True) for variant in self.variants}
        first, *others = self.chunk_sizes
        together: dict[str, Any] = {name: True for settings in on.values() for name in settings}
        cases = [Case(first, **settings) for settings in on.values()]
        cases += [Case(size) for size in others]
        cases += [Case(size, **together) for size in (first, *others)]
        return list(dict.fromkeys(cases))
