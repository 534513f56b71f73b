"""Random numbers are keyed by what they are for: prompts are balanced, streams never meet."""

from collections import Counter
from itertools import pairwise, product

import torch

from algorithms.seeding import Stream, derive_seed, generator, prompt_order


def test_every_prompt_comes_equally_often_in_each_round() -> None:
    """7 prompts in groups of 3: each 21 images hold every prompt 3 times, three in a row."""
    order = prompt_order(0, 7, 3, 0, 4 * 21)
    for start in range(0, len(order), 21):
        assert Counter(order[start : start + 21]) == dict.fromkeys(range(7), 3)
    assert all(len(set(order[start : start + 3])) == 1 for start in range(0, len(order), 3))


def test_prompt_order_does_not_depend_on_the_split() -> None:
    """One call for 100 images, or many of uneven length that cut through groups and rounds."""
    whole = prompt_order(5, 7, 3, 0, 100)
    cuts = [0, 1, 10, 32, 33, 77, 100]
    parts = [prompt_order(5, 7, 3, a, b - a) for a, b in pairwise(cuts)]
    assert [index for part in parts for index in part] == whole


def test_weighted_prompts_come_as_often_as_their_weights_say() -> None:
    """Shares of a round of 7 are 4.375, 2.1875 and 0.0875: each comes rounded up or down, and right on average."""
    weights = [10.0, 5.0, *[0.2] * 5]
    order = prompt_order(3, 7, 1, 0, 7 * 400, weights)
    expected = [7 * weight / 16 for weight in weights]
    rounds = [Counter(order[start : start + 7]) for start in range(0, len(order), 7)]
    for prompt, share in enumerate(expected):
        counts = [counter[prompt] for counter in rounds]
        assert set(counts) == {int(share), int(share) + 1}
        # 400 rounds of 0 or 1 beside the whole part: a standard error of at most 0.025.
        assert abs(sum(counts) / 400 - share) < 0.1
    assert [i for a in range(0, 100, 10) for i in prompt_order(3, 7, 1, a, 10, weights)] == order[:100]
    assert len({tuple(order[start : start + 7]) for start in range(0, 70, 7)}) > 5, "rounds are shuffled anew"


def test_prompt_order_is_shuffled_anew_by_round_and_by_seed() -> None:
    rounds = [tuple(prompt_order(0, 10, 1, 10 * i, 10)) for i in range(5)]
    seeds = [tuple(prompt_order(s, 10, 1, 0, 10)) for s in range(5)]
    assert len(set(rounds)) == 5  # 10! orders: a chance hit has probability 3e-6
    assert len(set(seeds)) == 5


def test_no_two_runs_streams_or_images_share_a_seed() -> None:
    """Plain seeds s + i would share 63 of 64 starts between runs 0 and 1; here 4 x 6 x 200 seeds are all different."""
    seeds = {derive_seed(run, stream, image) for run, stream, image in product(range(4), Stream, range(200))}
    assert len(seeds) == 4 * len(Stream) * 200
    assert all(0 <= seed < 2**63 for seed in seeds)  # what environments and torch.Generator accept


def test_the_numbers_of_streams_are_part_of_a_runs_identity() -> None:
    """Renumbering, or another hash, would silently change every published run."""
    assert [(stream.name, int(stream)) for stream in Stream][:6] == [
        ("INITIAL_LATENTS", 0),
        ("STEP_NOISE", 1),
        ("PROMPTS", 2),
        ("UPDATES", 3),
        ("EVALUATION_LATENTS", 4),
        ("EVALUATION_NOISE", 5),
    ]


def test_generators_repeat_and_stay_apart() -> None:
    draws = [torch.randn(4, generator=generator(0, stream, 3)) for stream in Stream]
    assert torch.equal(draws[1], torch.randn(4, generator=generator(0, Stream.STEP_NOISE, 3)))
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
