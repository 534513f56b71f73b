"""Draws docs/mdp.svg, one episode of the embedded model as a chain of states, actions and rewards.

Run in the repository's root: ``python docs/tools/mdp_picture.py``.
"""

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import matplotlib
import numpy as np
import torch

import diffusion_gym
from algorithms import DenoisingPolicy, PolicyConfig

TARGET = Path(__file__).parents[1] / "mdp.svg"
PROMPT, STEPS, SEED = "fox", 5, 5
SIZE, GAP = 1.0, 0.62  # of a picture and of the arrow after it, in inches
INK, QUIET, REWARD = "#1f2933", "#7b8794", "#b8500c"


@dataclass(frozen=True)
class State:
    """One state of the episode: the decoded latent (H, W, 3), its training time, and the reward it was reached with."""

    picture: np.ndarray
    timestep: int
    reward: float | None


def episode() -> list[State]:
    """Denoise one image through the public interface."""
    env = gymnasium.make(
        diffusion_gym.ENV_ID, prompts=[PROMPT], num_inference_steps=STEPS, render_mode="rgb_array"
    ).unwrapped
    policy = DenoisingPolicy(env.mdp.model, STEPS, PolicyConfig(trainable="full"))
    torch.manual_seed(SEED + 1)  # another stream than the initial latent, which is drawn from SEED
    observation, _ = env.reset(seed=SEED)
    states = [State(env.render(), int(observation["timestep"][0]), None)]
    done = False
    while not done:
        action, _ = policy.predict(observation)
        observation, reward, done, _, _ = env.step(action)
        states.append(State(env.render(), int(observation["timestep"][0]), reward))
    return states


def draw(states: list[State], target: Path) -> None:
    """Write the chain as SVG; the same states give the same bytes."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mdp"
    import matplotlib.pyplot as plt

    width = len(states) * SIZE + (len(states) - 1) * GAP + 0.3
    figure, axes = plt.subplots(figsize=(width, 2.42))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(-0.15, width - 0.15), ylim=(-0.74, 1.68))
    axes.axis("off")
    axes.text(
        (width - 0.3) / 2,
        1.48,
        f"state: prompt c = “{PROMPT}”, time t, noisy latent $x_t$",
        ha="center",
        va="center",
        fontsize=11,
        color=INK,
    )
    for index, state in enumerate(states):
        left = index * (SIZE + GAP)
        last = index == len(states) - 1
        axes.imshow(state.picture, extent=(left, left + SIZE, 0, SIZE), interpolation="nearest")
        name = f"$x_{len(states) - 1 - index}$"
        axes.text(left + SIZE / 2, 1.18, name, ha="center", va="center", fontsize=13, color=INK)
        axes.text(left + SIZE / 2, -0.18, f"t = {state.timestep}", ha="center", va="center", fontsize=10, color=QUIET)
        if last:
            axes.text(
                left + SIZE / 2,
                -0.52,
                f"$r(x_0, c)$ = {state.reward:.2f}",
                ha="center",
                va="center",
                fontsize=11,
                color=REWARD,
            )
            continue
        arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1.4, "shrinkA": 3, "shrinkB": 3}
        axes.annotate("", (left + SIZE + GAP, SIZE / 2), (left + SIZE, SIZE / 2), arrowprops=arrow)
        middle = left + SIZE + GAP / 2
        action = f"$x_{len(states) - 2 - index}$"
        axes.text(middle, 0.72, f"action\n{action}", ha="center", va="center", fontsize=9, color=INK)
        if index < len(states) - 2:
            axes.text(middle + (SIZE + GAP) / 2, -0.52, "r = 0", ha="center", va="center", fontsize=11, color=REWARD)
    axes.set_aspect("equal")
    figure.savefig(target, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    draw(episode(), TARGET)
    print(TARGET)
