"""Encoded prompts: each made by itself, kept in main memory within a bound, and the same when one comes back."""

import warnings
from typing import Any

import gymnasium
import pytest
import torch

import diffusion_gym
from algorithms import DDPO, EvaluationConfig
from diffusion_gym.envs.prompt_cache import PROMPT_CACHE_BYTES, PromptCache
from diffusion_gym.models import load_model

EMBEDDING = 16 * 32 * 4
"""Bytes of a prompt's embedding of the tiny pipeline."""


@pytest.fixture
def asked(tiny_sd: str, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the tiny pipeline's text encoder is given, a list a call."""
    model, calls = load_model(tiny_sd), []
    encode = model.encode_prompts
    monkeypatch.setattr(model, "encode_prompts", lambda prompts: calls.append(list(prompts)) or encode(prompts))
    return calls


def test_each_prompt_is_encoded_by_itself(tiny_sd: str, asked: list[list[str]]) -> None:
    """In a batch its rounding would depend on what else was asked for."""
    cache = PromptCache(load_model(tiny_sd))
    rows = cache(["cat", "dog", "cat"])
    assert asked == [["cat"], ["dog"]]
    assert rows[0] is rows[2]
    assert rows[0]["prompt_embedding"].shape == (1, 16, 32)


def test_the_least_recently_used_go_first(tiny_sd: str, asked: list[list[str]]) -> None:
    """Room for two: asking for the first again keeps it, and what was dropped comes back the same bit for bit."""
    cache = PromptCache(load_model(tiny_sd), limit=2 * EMBEDDING)
    before = cache(["dog"])[0]["prompt_embedding"]
    cache(["cat"])
    cache(["dog"])
    cache(["ant"])
    assert asked == [["dog"], ["cat"], ["ant"]]
    assert (len(cache), cache.nbytes) == (2, 2 * EMBEDDING)
    cache(["dog"])
    assert len(asked) == 3
    cache(["cat"])
    cache(["ant"])
    after = cache(["dog"])[0]["prompt_embedding"]
    assert asked[3:] == [["cat"], ["ant"], ["dog"]]
    assert torch.equal(before, after)


def test_what_is_asked_for_at_once_stays_whole(tiny_sd: str) -> None:
    """Three prompts in room for one; the next call brings the cache back within its bound."""
    cache = PromptCache(load_model(tiny_sd), limit=EMBEDDING)
    assert len(cache(["cat", "dog", "ant"])) == 3
    assert cache.nbytes == 3 * EMBEDDING
    cache(["dog"])
    assert (len(cache), cache.nbytes) == (1, EMBEDDING)


def test_tokens_are_kept_and_counted(tiny_sd: str) -> None:
    cache = PromptCache(load_model(tiny_sd), tokens=True)
    assert cache(["cat"])[0]["prompt_tokens"].shape == (1, 16)
    assert cache.nbytes == EMBEDDING + 16 * 8


def test_prompts_that_are_one_to_the_model_are_said(tiny_sd: str) -> None:
    """Of 16 tokens two are the beginning and the end; the vocabulary spells in letters, and knows no capitals."""
    model = load_model(tiny_sd)
    same = ["bbbbbbbbbbbbbb and a hat", "bbbbbbbbbbbbbb and a scarf"]
    told = (
        rf"cannot distinguish some prompts: it reads at most 16 tokens, the same ones of '{same[0]}' and '{same[1]}'\. "
    )
    cache = PromptCache(model)
    with pytest.warns(UserWarning, match=told) as said:
        cache(["cat", *same, "dog"])
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache([*same, "cat", "bird"])
        PromptCache(load_model("exact-mixture"))(["", "anywhere", "north"])  # it reads no tokens
    with pytest.warns(UserWarning, match=r"'cat' and 'CAT'\. "):
        cache(["CAT"])
    with pytest.warns(UserWarning, match="bbbbbbbbbbbbbb1.*and 2 more pairs") as said:
        gymnasium.make("DiffusionDenoise-v0", model=tiny_sd, prompts=[f"bbbbbbbbbbbbbb{n}" for n in range(6)])
    assert len(said) == 1


def test_embeddings_that_overflow_are_refused(tiny_sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of T5 in float16."""
    model = load_model(tiny_sd, dtype="float16")
    encoded = {"prompt_embedding": torch.full((1, 16, 32), torch.inf)}
    monkeypatch.setattr(model, "encode_prompts", lambda prompts: encoded)
    with pytest.raises(ValueError, match=r"embedding of 'cat' by .* in float16 is not finite.*'bfloat16' or"):
        PromptCache(model)(["cat"])


def test_a_prompt_that_cannot_be_encoded_leaves_the_cache_as_it_was() -> None:
    cache = PromptCache(load_model("exact-gaussian"))
    cache(["centre"])
    with pytest.raises(ValueError, match="knows the prompts"):
        cache(["a cat"])
    assert (len(cache), cache.nbytes) == (1, 4)


@pytest.mark.parametrize("config", [{"guidance_scale": 3.0}, {"train": "both"}], ids=str)
def test_a_run_with_room_for_one_prompt_is_the_same_to_the_bit(tiny_sd: str, config: dict[str, Any]) -> None:
    """Most prompts are encoded again and again; embeddings, tokens, evaluation and weights do not change."""

    def trained(limit: int) -> DDPO:
        env = gymnasium.make(
            diffusion_gym.ENV_ID, model=tiny_sd, prompts=["cat", "dog", "ant", "a fish"], num_inference_steps=2,
            prompt_tokens="train" in config,
        )  # fmt: skip
        settings = {"images_per_iteration": 8, "images_per_prompt": 2, "num_envs": 2, "chunk_size": 2}
        env.unwrapped.mdp.prompt_cache.limit = limit
        return DDPO(env, **settings, **config, evaluation=EvaluationConfig(images=4)).learn(2 * 8 * 2)

    bounded, free = trained(EMBEDDING), trained(PROMPT_CACHE_BYTES)
    assert len(bounded.mdp.prompt_cache) < len(free.mdp.prompt_cache) == 4
    first, second = (algorithm.policy.trainable_parameters() for algorithm in (bounded, free))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_the_cache_stays_in_main_memory_and_batches_go_to_the_device(
    tiny_sd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's "meta" stands for a device: what is assembled for a batch is moved there, what is kept is not."""
    mdp = gymnasium.make(diffusion_gym.ENV_ID, model=tiny_sd, prompts=["cat"]).unwrapped.mdp
    monkeypatch.setattr(mdp.model, "device", torch.device("meta"))
    assert mdp.conditioning_of(["cat", "cat"])["prompt_embedding"].device.type == "meta"
    assert mdp.prompt_cache(["cat"])[0]["prompt_embedding"].device.type == "cpu"
