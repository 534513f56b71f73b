"""The prompts of emoji-world as records with GenEval's fields: a benchmark, and sets to train and to test on."""

import json
import random
from collections.abc import Iterator
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from benchmarks.pretrain.emoji_world.captions import caption
from benchmarks.pretrain.emoji_world.facts import COLOURS, KINDS, NAMES, NUMBERS, OBJECTS, RELATIONS
from diffusion_gym.prompts import evaluation_prompts

Facts = tuple[int, ...]
Record = dict[str, Any]

UNSEEN = ("pig", "turtle", "butterfly", "tree", "guitar")
"""Objects of which no training prompt speaks."""

LARGEST_SEEN = 3
"""The largest number in a training prompt."""

LIKELY = {"single_object": 0.5, "two_object": 1, "counting": 1, "colors": 0.75, "position": 1.25, "color_attr": 1.5}
"""How likely a training prompt is of a kind, beside the others: what the model already does teaches it little."""


def record(kind: str, facts: Facts) -> Record:
    """Return the prompt of a kind and its facts, in the order of ``captions._RADICES``, with GenEval's fields."""
    first: Record = {"class": NAMES[facts[0]], "count": 1}
    made: Record = {"tag": kind, "include": [first]}
    if kind == "counting":
        first["count"] = facts[1] + 1
        made["exclude"] = [{"class": NAMES[facts[0]], "count": facts[1] + 2}]
    elif kind == "colors":
        first["color"] = list(COLOURS)[facts[1]]
    elif kind != "single_object":
        second: Record = {"class": NAMES[facts[1]], "count": 1}
        made["include"] = [first, second]
        if kind == "position":
            first["position"] = [RELATIONS[facts[2]], 0]
            made["include"] = [second, first]
        elif kind == "color_attr":
            first["color"], second["color"] = (list(COLOURS)[index] for index in facts[2:])
    return {**made, "prompt": caption(kind, *facts)}


def all_facts(kind: str) -> Iterator[Facts]:
    """Yield the facts of every prompt of a kind; two objects differ, and no colour is an object's own."""
    asked = [[index for index, name in enumerate(COLOURS) if name not in thing.own] for thing in OBJECTS]
    for one in range(len(OBJECTS)):
        if kind == "single_object":
            yield (one,)
        elif kind in ("counting", "colors"):
            yield from ((one, index) for index in (range(len(NUMBERS)) if kind == "counting" else asked[one]))
    if kind in ("single_object", "counting", "colors"):
        return
    for one, other in permutations(range(len(OBJECTS)), 2):
        if kind == "two_object":
            yield one, other
        elif kind == "position":
            yield from ((one, other, relation) for relation in range(len(RELATIONS)))
        else:
            yield from ((one, other, a, b) for a in asked[one] for b in asked[other] if a != b)


def unseen_pairs() -> set[frozenset[int]]:
    """Return the pairs of seen objects that no training prompt has: every fifth, spread over all objects."""
    seen = [index for index, name in enumerate(NAMES) if name not in UNSEEN]
    return {frozenset(pair) for place, pair in enumerate(combinations(seen, 2)) if place % 5 == 0}


def set_of(kind: str, facts: Facts) -> str:
    """Return the set that a prompt may belong to."""
    pair = facts[:2] if kind in ("two_object", "position", "color_attr") else facts[:1]
    unseen = [NAMES[index] in UNSEEN for index in pair]
    if any(unseen):
        return "held-out-objects" if all(unseen) else "mixed"
    if kind == "counting" and facts[1] + 1 > LARGEST_SEEN:
        return "held-out-counts"
    return "held-out-pairs" if frozenset(pair) in unseen_pairs() else "train"


def prompt_sets(most: int = 60) -> dict[str, list[Record]]:
    """Return the benchmark of all objects, the training set and three held-out sets, at most ``most`` of a kind each.

    The prompts of a set are drawn at random from all that belong to it, the same ones every time. Weights make the
    kinds of the training set as likely as :data:`LIKELY` says.
    """
    drawn: dict[str, list[Record]] = {}
    for kind in KINDS:
        everything = list(all_facts(kind))
        sets = {"benchmark": everything}
        for facts in everything:
            sets.setdefault(set_of(kind, facts), []).append(facts)
        sets.pop("mixed", None)
        for name, members in sets.items():
            limit = 2 * most if name == "train" else most
            chosen = random.Random(f"{kind} {name}").sample(members, min(limit, len(members)))
            more = {"weight": LIKELY[kind] * limit / len(chosen)} if name == "train" else {}
            drawn.setdefault(name, []).extend({**record(kind, facts), **more} for facts in sorted(chosen))
    return drawn


def together(sets: dict[str, list[Record]], most: int = 24) -> list[Record]:
    """Return prompts of the held-out sets, at most ``most`` of a kind, shared equally by the sets that have the kind.

    They are in the order of the kinds, and within a kind of the sets. So n evenly spaced ones, which an evaluation
    takes, have every kind and set in its share; prompts that took turns would not: every fifth could be of one kind.
    """
    chosen: list[Record] = []
    for kind in KINDS:
        held_out = [records for name, records in sets.items() if name.startswith("held-out-")]
        members = [of_kind for records in held_out if (of_kind := [one for one in records if one["tag"] == kind])]
        for of_kind in members:
            chosen += evaluation_prompts(of_kind, min(len(of_kind), most // len(members)))
    return chosen


def write_prompts(folder: Path) -> None:
    """Write each set as a file of JSON lines, and of the held-out sets ``held-out.jsonl``, with all kinds alike."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = prompt_sets()
    for name, records in {**sets, "held-out": together(sets)}.items():
        lines = "".join(json.dumps(one) + "\n" for one in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
