"""Draws docs/layers.svg (packages and their imports) and docs/data.svg (the data's way through one iteration).

Run in the repository's root: ``python docs/tools/architecture_pictures.py``. Needs nothing but Python. The pictures
have a light background of their own, so that they can be read on dark pages too.
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1]
PAPER, INK, QUIET, LINE = "#ffffff", "#1f2933", "#52606d", "#7b8794"
BENCHMARKS, ALGORITHMS, GYM, NOTE = "#fdf0e6", "#e8f1fb", "#eaf6ec", "#f5f7fa"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass
class Picture:
    """An SVG that grows by boxes, texts and arrows; all places are in pixels."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, fill: str, stroke: str = LINE) -> None:
        """Draw a rounded rectangle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="7" fill="{fill}" stroke="{stroke}"/>'
        )

    def text(self, x: float, y: float, text: str, size: int = 13, anchor: str = "start", **style: str) -> None:
        """Write a line; ``weight`` and ``fill`` may differ."""
        weight, fill = style.get("weight", "normal"), style.get("fill", INK)
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )

    def card(self, x: float, y: float, w: float, h: float, fill: str, head: str, *lines: str) -> None:
        """Draw a box with a bold first line and smaller ones below, centred."""
        self.box(x, y, w, h, fill)
        top = y + h / 2 - 8 * len(lines) + 5
        self.text(x + w / 2, top, head, 14, "middle", weight="600")
        for number, line in enumerate(lines, 1):
            self.text(x + w / 2, top + 16 * number, line, 12, "middle", fill=QUIET)

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw a line through points, with a head at its end."""
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="M {path}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>')

    def write(self, file: Path) -> None:
        """Write the SVG; the same picture gives the same bytes."""
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M 0 0 L 10 5 L 0 10 z" fill="{INK}"/></marker>'
        )
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="{FONT}" role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<defs>{head}</defs>",
            f'<rect width="{self.width}" height="{self.height}" rx="10" fill="{PAPER}"/>',
            *self.parts,
            "</svg>\n",
        ]
        file.write_text("\n".join(lines), encoding="utf-8")


#: Package, what it is for, colour, and rows of (sub-package or file, what is in it).
LAYERS = (
    (
        "benchmarks",
        "the command line, and what it measures",
        BENCHMARKS,
        (
            (
                ("commands", "train, compare, ..."),
                ("runs", "one run and its folder"),
                ("sweeps", "many runs"),
                ("suite", "tasks, recipes, suites"),
                ("pretrain", "the embedded model"),
            ),
            (
                ("analysis", "curves, statistics"),
                ("report", "page and charts"),
                ("docs_tables", "tables of these pages"),
                ("throughput", "images per second"),
            ),
        ),
    ),
    (
        "algorithms",
        "policy, rollouts, updates",
        ALGORITHMS,
        (
            (
                ("base.py", "the loop"),
                ("sampling.py", "sample and score"),
                ("ddpo.py, rwr.py", "the updates"),
                ("policy.py", "denoiser + sampler"),
                ("losses, advantages", "the formulas"),
            ),
            (
                ("config", "dataclasses, JSON"),
                ("checkpoints", "save, load, resume"),
                ("parallel", "ranks, sharding"),
                ("sb3", "Stable-Baselines3's side"),
            ),
        ),
    ),
    (
        "diffusion_gym",
        "everything that does not learn",
        GYM,
        (
            (
                ("envs", "the MDP"),
                ("transitions", "x_t to a Gaussian"),
                ("models", "families of pipelines"),
                ("rewards", "scores of images"),
                ("prompts.py", "prompt sets and files"),
            ),
        ),
    ),
)


def layers() -> Picture:
    """Return the packages as bands; each imports from those below it alone."""
    width, margin, left, row, gap = 960, 20, 24, 50, 10
    heights = [58 + len(rows) * (row + gap) for _, _, _, rows in LAYERS]
    picture = Picture(width, sum(heights) + 34 * (len(LAYERS) - 1) + 2 * margin, "Packages, and which imports which")
    y: float = margin
    for index, ((name, purpose, fill, rows), height) in enumerate(zip(LAYERS, heights, strict=True)):
        picture.box(margin, y, width - 2 * margin, height, fill)
        picture.text(margin + left, y + 30, name, 18, weight="700")
        picture.text(width - margin - left, y + 30, purpose, 14, "end", fill=QUIET)
        for line, cells in enumerate(rows):
            w = (width - 2 * margin - 2 * left - gap * (len(cells) - 1)) / len(cells)
            for number, (head, what) in enumerate(cells):
                x, top = margin + left + number * (w + gap), y + 46 + line * (row + gap)
                picture.card(x, top, w, row, PAPER, head, what)
        y += height
        if index < len(LAYERS) - 1:
            picture.arrow((width / 2, y + 3), (width / 2, y + 31))
            picture.text(width / 2 + 12, y + 22, "imports", 13, fill=QUIET)
            y += 34
    return picture


def data() -> Picture:
    """Return one iteration: sampling above, the update below, and what goes from one to the other."""
    picture = Picture(960, 602, "The data's way through one iteration")
    top, w, h = 96, 190, 74
    columns = (40, 385, 730)

    picture.box(20, 20, 920, 296, NOTE)
    picture.text(40, 48, "collect", 16, weight="700")
    picture.text(108, 48, "n images side by side, T steps, no gradient", 13, fill=QUIET)
    picture.card(columns[0], top, w, h, GYM, "env.reset", "draws x_T,", "encodes the prompts")
    picture.card(columns[1], top, w, h, ALGORITHMS, "policy", "p(x_{t-1} | x_t, c):", "a Gaussian, and a draw")
    picture.card(columns[2], top, w, h, GYM, "env.step", "takes x_{t-1};", "decodes after step T")
    picture.text(columns[0] + w / 2, top - 12, "prompts", 13, "middle", fill=QUIET)
    middle = top + h / 2
    picture.arrow((columns[0] + w, middle), (columns[1] - 3, middle))
    for number, word in enumerate(("latent (n, ...)", "timestep (n,)", "prompt_embedding")):
        y = (middle - 26, middle - 9, middle + 18)[number]
        picture.text((columns[0] + w + columns[1]) / 2, y, word, 12, "middle", fill=QUIET)
    picture.arrow((columns[1] + w, middle), (columns[2] - 3, middle))
    picture.text((columns[1] + w + columns[2]) / 2, middle - 9, "next latent", 12, "middle", fill=QUIET)
    back = top + h + 28
    right, left = columns[2] + 40, columns[1] + w - 40
    picture.arrow((right, top + h), (right, back), (left, back), (left, top + h + 3))
    picture.text((columns[1] + w + columns[2]) / 2, back - 8, "T times", 12, "middle", fill=QUIET)

    below = top + h + 62
    picture.card(columns[2], below, w, 62, GYM, "reward", "images (n, 3, H, W), uint8,", "and prompts to (n,)")
    picture.arrow((columns[2] + w - 40, top + h), (columns[2] + w - 40, below - 3))
    picture.text(columns[2] + w - 32, below - 24, "images", 12, fill=QUIET)
    picture.box(columns[0], below, columns[1] + w - columns[0], 62, PAPER)
    picture.text(columns[0] + 14, below + 26, "Rollout", 14, weight="600")
    picture.text(columns[0] + 80, below + 26, "latents (T + 1, n, ...), log_probs (T, n), conditioning", 12, fill=QUIET)
    picture.text(columns[0] + 80, below + 46, "prompts, rewards (n,), images", 12, fill=QUIET)
    picture.arrow((columns[1] + 40, top + h), (columns[1] + 40, below - 3))
    picture.text(columns[1] + 32, below - 24, "latents, log_prob", 12, "end", fill=QUIET)
    picture.arrow((columns[2], below + 31), (columns[1] + w + 3, below + 31))
    picture.text((columns[1] + w + columns[2]) / 2, below + 22, "rewards", 12, "middle", fill=QUIET)

    _update(picture, below + 62)
    return picture


def _update(picture: Picture, rollout: float) -> None:
    """Draw the update below the rollout, whose lower edge is at ``rollout``."""
    start, w, h = 346, 200, 58
    picture.box(20, start, 920, 236, NOTE)
    picture.text(110, start + 28, "update", 16, weight="700")
    picture.text(182, start + 28, "chunk by chunk, as the images were sampled, with gradient", 13, fill=QUIET)
    upper, lower = start + 46, start + 126
    middle = (upper + lower + h) / 2
    picture.card(110, upper, w, h, ALGORITHMS, "advantages", "A (n,), from rewards")
    picture.card(110, lower, w, h, ALGORITHMS, "policy.log_prob", "of the same x_{t-1}, now")
    picture.card(425, middle - 37, w, 74, ALGORITHMS, "loss", "ratio = p / p_old,", "max(-A ratio, -A clip(ratio))")
    picture.card(
        720, middle - 37, w, 74, ALGORITHMS, "backward, step", "gradients of all chunks", "and ranks; clip; AdamW"
    )
    for y in (upper + h / 2, lower + h / 2):
        picture.arrow((64, rollout), (64, y), (107, y))
    for y, to in ((upper + h / 2, middle - 14), (lower + h / 2, middle + 14)):
        picture.arrow((110 + w, y), (367, y), (367, to), (422, to))
    picture.arrow((425 + w, middle), (717, middle))
    bottom = lower + h + 32
    picture.arrow((820, middle + 37), (820, bottom), (210, bottom), (210, lower + h + 3))
    picture.text(515, bottom - 8, "new weights, for the next update and the next rollout", 12, "middle", fill=QUIET)


if __name__ == "__main__":
    for name, picture in (("layers", layers()), ("data", data())):
        picture.write(DOCS / f"{name}.svg")
        print(DOCS / f"{name}.svg")
