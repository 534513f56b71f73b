"""Draws the facts of scenes at random: captioned ones for the denoiser, crowded ones for the detectors.

Everything is tensor arithmetic of fixed shapes, so that a GPU draws thousands at a time inside a CUDA graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.pretrain.emoji_world.captions import offsets
from benchmarks.pretrain.emoji_world.facts import COLOURS, KINDS, NUMBERS, OBJECTS, RELATIONS, asked_colours
from benchmarks.pretrain.emoji_world.render import SIDE, Scenes, render, tints
from benchmarks.pretrain.emoji_world.sprites import SIZES, Sprites

KIND_SHARES = {
    "single_object": 0.1, "two_object": 0.15, "counting": 0.17, "colors": 0.13, "position": 0.25, "color_attr": 0.2,
}  # fmt: skip
"""How often each kind is drawn for the denoiser."""

SLIPS = {
    "single_object": 0.0, "two_object": 0.2, "counting": 0.4, "colors": 0.2, "position": 0.38, "color_attr": 0.45,
}  # fmt: skip
"""Share of a kind's captions that the picture does not keep: the captions of the web are no better, and a model that
learned from them has something left to learn from a reward."""

CROWDS = (0.03, 0.17, 0.3, 0.15, 0.2, 0.09, 0.06)
"""How often a detector's training picture shows none, one, two ... six objects."""

CAPTIONED_SLOTS, CROWDED_SLOTS = 4, 6

_CELLS = (
    [(0, 0, 64, 64)],
    [(0, 10, 32, 44), (32, 10, 32, 44)],
    [(10, 0, 44, 32), (10, 32, 44, 32)],
    [(x, y, 32, 32) for y in (0, 32) for x in (0, 32)],
    [(x, y, 21, 32) for y in (0, 32) for x in (0, 21, 42)],
    [(x, y, 32, 21) for y in (0, 21, 42) for x in (0, 32)],
)
"""The layouts: left, top, width and height of the cells that hold one object each."""

_RANGES = ((28, 44), (22, 30), (22, 30), (20, 28), (18, 20), (18, 20))
"""The smallest and the largest object of each layout, in pixels."""


@dataclass(frozen=True)
class Facts:
    """What n scenes show; empty slots are not looked at."""

    objects: Tensor
    """(n, slots) int64 index into ``OBJECTS``."""
    colours: Tensor
    """(n, slots) int64: 0 for an object's own colours, else 1 + index into ``COLOURS``."""
    count: Tensor
    """(n,) int64 objects in the picture: the first so many slots."""
    relation: Tensor
    """(n,) int64 index into ``RELATIONS``: how the first of two objects lies to the second."""


@dataclass
class World:
    """Random scenes on one device, and their pictures."""

    sprites: Sprites
    """The objects' glyphs."""
    device: torch.device
    """Where scenes are drawn."""

    def __post_init__(self) -> None:
        """Put the tables on the device."""
        self.sprites = self.sprites.to(self.device)
        self.palette = tints(self.device)
        self.cells = torch.zeros(len(_CELLS), CROWDED_SLOTS, 4, dtype=torch.long)
        self.full = torch.tensor([len(cells) for cells in _CELLS], device=self.device)
        for layout, cells in enumerate(_CELLS):
            self.cells[layout, : len(cells)] = torch.tensor(cells)
        self.cells = self.cells.to(self.device)
        self.ranges = torch.tensor([[SIZES.index(size) for size in pair] for pair in _RANGES], device=self.device)
        asked = [[1 + list(COLOURS).index(name) for name in asked_colours(thing)] for thing in OBJECTS]
        self.asked_count = torch.tensor([len(row) for row in asked], device=self.device)
        self.asked = torch.tensor([row + [0] * (len(COLOURS) - len(row)) for row in asked], device=self.device)
        self.may_ask = torch.tensor([[index in [0, *row] for index in range(1 + len(COLOURS))] for row in asked])
        self.may_ask = self.may_ask.to(self.device)
        self.starts = torch.tensor(list(offsets().values()), device=self.device)
        self.kind_bounds = torch.tensor([KIND_SHARES[kind] for kind in KINDS], device=self.device).cumsum(0)[:-1]
        self.slips = torch.tensor([SLIPS[kind] for kind in KINDS], device=self.device)
        self.crowd_bounds = torch.tensor(CROWDS, device=self.device).cumsum(0)[:-1]

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1)."""
        return torch.rand(shape, device=self.device)

    def below(self, limit: Tensor | int, *shape: int) -> Tensor:
        """Return whole numbers from 0 to ``limit`` - 1."""
        return (self.uniform(*shape) * limit).long()

    def colour_of(self, objects: Tensor) -> Tensor:
        """Return a colour for each object that a prompt may ask for, as 1 + index into ``COLOURS``."""
        choice = self.below(self.asked_count[objects], *objects.shape)
        return self.asked[objects].gather(-1, choice[..., None])[..., 0]

    def captioned(self, rows: int) -> tuple[Scenes, Tensor]:
        """Return scenes and their captions' indices into ``captions()``, (n,) int64."""
        kind = torch.bucketize(self.uniform(rows), self.kind_bounds)
        first, second, number = self.asked_facts(rows)
        colours = torch.stack([self.colour_of(first), self.colour_of(second)], dim=1)
        relation = self.below(len(RELATIONS), rows)
        many, size = len(OBJECTS), len(COLOURS)
        pair = first * many + second
        numbered = torch.stack([
            first, pair, first * len(NUMBERS) + number, first * size + colours[:, 0] - 1,
            pair * len(RELATIONS) + relation, (pair * size + colours[:, 0] - 1) * size + colours[:, 1] - 1,
        ], dim=1)  # fmt: skip
        caption = (self.starts[kind] + numbered.gather(1, kind[:, None])[:, 0]).long()
        facts = self.slipped(kind, first, second, number + 1, colours, relation)
        return self.placed(facts), caption

    def asked_facts(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return two objects that differ, and a number from 0 for one, each (n,) int64."""
        first = self.below(len(OBJECTS), rows)
        second = (first + 1 + self.below(len(OBJECTS) - 1, rows)) % len(OBJECTS)
        return first, second, self.below(len(NUMBERS), rows)

    def slipped(
        self, kind: Tensor, first: Tensor, second: Tensor, number: Tensor, colours: Tensor, relation: Tensor
    ) -> Facts:
        """Return what the pictures show, which is not always what their captions say; see ``SLIPS``."""
        rows = len(kind)
        slip, half = self.uniform(rows) < self.slips[kind], self.uniform(rows) < 0.5
        two, counting, tinted, position, bound = (kind == KINDS.index(name) for name in KINDS[1:])
        double = slip & two & half
        second = torch.where(counting | double, first, second)
        wrong = torch.where(number == 1, 2, torch.where((number == len(NUMBERS)) | half, number - 1, number + 1))
        count = torch.where(counting, torch.where(slip, wrong, number), 1 + (two | position | bound).long())
        count = torch.where(slip & two & ~half, 1, count)
        other = (relation + 1 + self.below(len(RELATIONS) - 1, rows)) % len(RELATIONS)
        shown = torch.where(position & ~slip, relation, torch.where(position, other, self.below(4, rows)))
        objects = torch.cat([first[:, None], second[:, None].expand(-1, CAPTIONED_SLOTS - 1)], dim=1)
        swapped = colours.flip(1)
        one_lost = torch.where((self.uniform(rows) < 0.5)[:, None], colours * self._one(0), colours * self._one(1))
        missed = torch.where(half[:, None], swapped, one_lost)
        missed = torch.where(tinted[:, None], torch.where(half, 0, self.colour_of(first))[:, None], missed)
        colours = torch.where(slip[:, None], missed, colours) * (tinted | bound)[:, None]
        colours = colours * self.may_ask[objects[:, :2], colours]
        colours = torch.cat([colours, torch.zeros_like(colours)], dim=1)
        return Facts(objects, colours, count, shown)

    def _one(self, slot: int) -> Tensor:
        """Return 1 for one of two slots and 0 for the other."""
        return (torch.arange(2, device=self.device) == slot).long()

    def crowded(self, rows: int) -> Scenes:
        """Return scenes of none to six objects of any colours, often several of one kind."""
        slots = CROWDED_SLOTS
        count = torch.bucketize(self.uniform(rows), self.crowd_bounds)
        objects = self.below(len(OBJECTS), rows, slots)
        objects = torch.where(self.uniform(rows, slots) < 0.35, objects[:, :1], objects)
        colours = self.colour_of(objects) * (self.uniform(rows, slots) < 0.55)
        facts = Facts(objects, colours, count, self.below(len(RELATIONS), rows))
        return self.placed(facts, jitter=4)

    def placed(self, facts: Facts, jitter: int = 0) -> Scenes:
        """Give the objects their places and sizes, and the scene its background; ``jitter``: pixels off their cells."""
        rows, slots = facts.objects.shape
        count, axis = facts.count, facts.relation // 2
        few = torch.where(count == 2, 1 + axis, torch.where(count > 4, 4 + axis, 3))
        layout = torch.where(count <= 1, 0, few)
        keys = self.uniform(rows, CROWDED_SLOTS)
        keys = keys + 2.0 * (torch.arange(CROWDED_SLOTS, device=self.device) >= self.full[layout][:, None])
        order = keys.argsort(dim=1)
        in_order = (facts.relation % 2)[:, None] ^ torch.arange(2, device=self.device)
        order = torch.cat([torch.where((count == 2)[:, None], in_order, order[:, :2]), order[:, 2:]], dim=1)
        cells = self.cells[layout[:, None], order[:, :slots]]
        low, high = self.ranges[layout, 0][:, None], self.ranges[layout, 1][:, None]
        sizes = low + self.below(high - low + 1, rows, slots)
        pixels = SIZES[0] + sizes * (SIZES[1] - SIZES[0])
        place = cells[..., :2] + self.below(cells[..., 2:] - pixels[..., None] + 1, rows, slots, 2)
        place = (place + self.below(2 * jitter + 1, rows, slots, 2) - jitter).clamp(min=0)
        place = torch.minimum(place, SIDE - pixels[..., None])
        shown = torch.arange(slots, device=self.device) < count[:, None]
        return Scenes(
            objects=torch.where(shown, facts.objects, -1),
            colours=facts.colours,
            sizes=sizes,
            left=place[..., 0],
            top=place[..., 1],
            flipped=self.uniform(rows, slots) < 0.5,
            ends=self._soft_colours(rows),
            angle=self.uniform(rows) * 2 * torch.pi,
        )

    def _soft_colours(self, rows: int) -> Tensor:
        """Return the colours of the backgrounds' ends, light and soft, (n, 2, 3); equal in half of the rows."""
        hue = (self.uniform(rows, 2, 1) * 6.0 + 2.0 * torch.arange(3, device=self.device)) % 6.0
        ramp = ((hue - 3.0).abs() - 1.0).clamp(0.0, 1.0)
        value, saturation = 0.86 + 0.14 * self.uniform(rows, 2, 1), 0.22 * self.uniform(rows, 2, 1)
        ends = 255.0 * value * (1.0 - saturation * (1.0 - ramp))
        plain = (self.uniform(rows) < 0.5)[:, None]
        return torch.stack([ends[:, 0], torch.where(plain, ends[:, 0], ends[:, 1])], dim=1)

    def draw(self, scenes: Scenes) -> Tensor:
        """Return the scenes' pictures, (n, 3, 64, 64) float32 in [-1, 1]."""
        return render(scenes, self.sprites, self.palette)
