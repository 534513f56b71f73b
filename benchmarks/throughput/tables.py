"""The tables of ``throughput``, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

PHASES = ("sampling", "training")
_LARGEST = 5


def markdown(result: dict[str, Any]) -> str:
    """Return the result's tables."""
    what, chunks = result["iteration"], result["chunks"]
    lines = [
        f"{result['settings']['algorithm']} on {result['settings']['model']}, {what['images']} images of "
        f"{what['steps']} steps, latents {_shape(what['latent_shape'])}; {what['sampling_rows']:,} rows sampled in "
        f"{len(what['passes']['sampled'])} passes, {what['updates']} updates on {what['training_rows']:,} rows in "
        f"{len(what['passes']['trained'])} passes; {what['trainable_parameters']:,} of "
        f"{what['parameters']:,} parameters are trained. {_machine(result)}",
        "",
        "| | images/s | floor, images/s | time above floor | processor time above floor | time above same passes | "
        "peak memory, MB | above floor's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for phase in PHASES:
        row = result[phase]
        lines.append(
            f"| {phase} | {row['images_per_second']:.1f} | {row['floor_images_per_second']:.1f} | "
            f"{row['above_floor']:+.1%} | {row['above_floor_cpu']:+.1%} | {row['above_same_passes']:+.1%} | "
            f"{row['megabytes']:.0f} | {row['megabytes_above_floor']:+.1%} |"
        )
    lines += ["", f"Medians of {len(result['sampling']['pairs'])} pairs. Floor's seconds by chunk size: "]
    lines[-1] += "; ".join(f"{phase} {_seconds(times)}" for phase, times in chunks.items())
    lines[-1] += f". A rollout holds {what['rollout_megabytes']:.1f} MB."
    sizes = result["iteration_chunks"]
    lines += [
        "",
        f"An iteration's seconds by the program's chunk size: {_seconds(sizes)}. **Fastest: --policy.chunk-size "
        f"{fastest(sizes)}.**",
    ]
    if "growth" in result:
        lines += ["", *_growth_table(result["growth"])]
    if "profile" in result:
        for kind, title in (("parts", "part of the program"), ("operations", "kind of operation")):
            lines += ["", f"| {title} | share of an iteration |", "|---|---|"]
            largest = list(result["profile"][kind].items())[:_LARGEST]
            lines += [f"| {name} | {share:.1%} |" for name, share in largest]
            lines.append(f"| everything else | {1 - sum(share for _, share in largest):.1%} |")
    return "\n".join(lines) + "\n"


def fastest(seconds: Mapping[int, float]) -> int:
    """Return the chunk size that takes the least time."""
    return min(seconds, key=lambda size: seconds[size])


def _seconds(by_size: Mapping[int, float]) -> str:
    return ", ".join(f"{size}: {seconds:.2f}" for size, seconds in by_size.items())


def _growth_table(growth: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| varied | images | steps | latents | sampling, ms per image | training, ms per image | rollout, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in growth:
        cost = row["milliseconds_an_image"]
        lines.append(
            f"| {row['axis']} | {row['images']} | {row['steps']} | {_shape(row['latent_shape'])} | "
            f"{cost['sampling']:.1f} | {cost['training']:.1f} | {row['rollout_megabytes']:.2f} |"
        )
    return lines


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _machine(result: dict[str, Any]) -> str:
    made, device = result["provenance"], result["iteration"]["device"]
    where = made["processor"] if device == "cpu" else device
    return f"{where}, {made['torch_threads']} torch thread(s), torch {made['packages']['torch']}."
