"""Prompt alignment: a captioner in this process, and one behind a server that is slow, fails and dies."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.prompts import Prompt
from diffusion_gym.rewards import RewardError, VLMAlignment, evaluate_reward, resolve_reward
from diffusion_gym.rewards.metadata import check_metadata
from diffusion_gym.rewards.models.bertscore import BERTScore
from diffusion_gym.rewards.models.captioner import Captioner
from diffusion_gym.rewards.models.served import ServedCaptioner

QUESTION = "What is in this image?"
PROMPTS = ["a cat", "a dog riding a bike", "an ant", "a fish playing chess", "a horse", "cat", "a cat"]


def pictures(n: int = 7, size: int = 20) -> Tensor:
    """Return pictures of different brightness with some texture, (n, 3, size, size), uint8."""
    rng = np.random.default_rng(0)
    levels = np.linspace(20, 235, n)[:, None, None, None]
    return torch.from_numpy((levels + rng.uniform(-20, 20, (n, 3, size, size))).astype(np.uint8))


# ---- in this process


def test_descriptions_are_those_of_plain_transformers(tiny_reward_models: Path) -> None:
    """One image at a time, in the way of transformers' own documentation, against padded chunks of four."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = str(tiny_reward_models / "captioner")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    text = f"USER: <image>{QUESTION}"
    expected = []
    for picture in pictures():
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        inputs = processor(images=image, text=text, return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=12)
        expected.append(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    captioner = Captioner(folder, chunk_size=4, max_new_tokens=12)
    assert captioner(pictures(), QUESTION) == expected
    assert [captioner(picture[None], QUESTION)[0] for picture in pictures()] == expected
    assert len(set(expected)) > 3
    assert captioner(pictures(), "the user is in the image :") != expected


def test_a_processor_without_template_is_asked_as_llava_15(tiny_reward_models: Path) -> None:
    captioner = Captioner(str(tiny_reward_models / "captioner"), max_new_tokens=4)
    captioner._processor.chat_template = None
    assert captioner._prompt(QUESTION) == f"USER: <image>\n{QUESTION} ASSISTANT:"
    assert len(captioner(pictures(3), QUESTION)) == 3


def test_precision_and_device_are_the_users(tiny_reward_models: Path) -> None:
    captioner = Captioner(str(tiny_reward_models / "captioner"), device="cpu", dtype="bfloat16", max_new_tokens=4)
    assert next(captioner._model.parameters()).dtype == torch.bfloat16
    assert all(isinstance(text, str) for text in captioner(pictures(3), QUESTION))


def test_reward_is_the_recall_of_the_papers_sentence(tiny_rewards: Path) -> None:
    reward = resolve_reward("vlm_alignment?max_new_tokens=8&chunk_size=3")
    assert isinstance(reward, VLMAlignment)
    said = Captioner(str(tiny_rewards / "captioner"), max_new_tokens=8)(
        pictures(), "Answer concisely: what is going on in this image?"
    )
    assert reward.describe(pictures()) == said
    wanted = [f"The image contains {prompt}" for prompt in PROMPTS]
    scores = evaluate_reward(reward, pictures(), PROMPTS)
    torch.testing.assert_close(scores, BERTScore(str(tiny_rewards / "bert"))(said, wanted))
    alone = [
        evaluate_reward(reward, picture[None], [prompt]) for picture, prompt in zip(pictures(), PROMPTS, strict=True)
    ]
    torch.testing.assert_close(scores, torch.cat(alone))


# ---- behind a server


def served(url: str, **changes: Any) -> ServedCaptioner:
    """Return a captioner that pauses for milliseconds."""
    return ServedCaptioner(url, "tiny", **{"pause": 0.01, "timeout": 5.0, "retries": 3, **changes})


def test_a_slow_server_is_asked_several_times_at_once_and_in_order(chat_server: Callable[..., Any]) -> None:
    server, images = chat_server(), pictures(12)
    four, arrivals, all_asked = threading.Barrier(4), itertools.count(), threading.Event()

    def behave(attempt: int, picture: bytes) -> str:
        """Four are answered only once all of them are there.

        The first of them is answered last: an answer that took its turn instead of its image's place would show.
        """
        arrived = next(arrivals)
        if len(server.requests) == 12:
            all_asked.set()
        if arrived < 4:
            four.wait(timeout=60)
        if arrived == 0:
            all_asked.wait(timeout=60)
        return "answer"

    server.behave = behave
    answers = served(server.url + "/", concurrency=4, max_new_tokens=9, timeout=60.0)(images, QUESTION)
    assert answers == [server.describe(image.permute(1, 2, 0).numpy()) for image in images]
    assert len(set(answers)) > 8
    assert server.most_at_once == 4
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0, 9)
    assert body["messages"][0]["content"][1] == {"type": "text", "text": QUESTION}
    sent = {picture.tobytes() for picture in server.pictures}
    assert sent == {image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in images}


@pytest.mark.parametrize("failure", ["500", "429:0", "503", "cut", "garbage", "silence:2"])
def test_passing_failures_are_overcome(chat_server: Callable[..., Any], failure: str) -> None:
    server, images = chat_server(), pictures(5)
    server.behave = lambda attempt, picture: failure if attempt < 1 else "answer"
    python, tensor = random.getstate(), torch.get_rng_state()
    # Silence is waited for; a busy machine may be silent once more, with nothing to do with the test.
    silent = failure.startswith("silence")
    answers = served(server.url, **({"timeout": 0.5, "retries": 50} if silent else {"timeout": 60.0}))(images, QUESTION)
    assert answers == [server.describe(image.permute(1, 2, 0).numpy()) for image in images]
    assert len(server.requests) == 10 or (silent and len(server.requests) > 10)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), tensor)


def test_a_server_on_this_machine_is_reached_in_spite_of_a_proxy(
    chat_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = chat_server()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy")
    for host in ("127.0.0.1", "localhost"):
        url = server.url.replace("127.0.0.1", host)
        assert len(served(url, retries=0)(pictures(2), QUESTION)) == 2


def test_the_proxy_of_another_server_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(RewardError, match=r"vlm\.invalid.*\(through the proxy 127\.0\.0\.1:9; .* no_proxy") as error:
        served("http://vlm.invalid/v1", retries=0)(pictures(1), QUESTION)
    assert "secret" not in str(error.value)


def test_retry_after_is_kept(chat_server: Callable[..., Any]) -> None:
    server = chat_server()
    server.behave = lambda attempt, picture: "429:1" if attempt == 0 else "answer"
    started = time.monotonic()
    served(server.url)(pictures(1), QUESTION)
    assert time.monotonic() - started >= 1.0


def test_pauses_double_and_are_drawn_between_half_and_whole() -> None:
    captioner = served("http://127.0.0.1:1/v1", pause=1.0)
    for attempt, whole in ((0, 1), (3, 8), (10, 60)):
        pauses = [captioner._backoff(attempt) for _ in range(200)]
        assert whole / 2 <= min(pauses) < 0.6 * whole
        assert 0.9 * whole < max(pauses) <= whole


def test_a_server_that_dies_in_the_middle_is_named(chat_server: Callable[..., Any], tiny_rewards: Path) -> None:
    server = chat_server()
    server.behave = lambda attempt, picture: "answer" if len(server.requests) < 4 else "cut"
    reward = resolve_reward(f"vlm_alignment?url={server.url}&model=tiny&retries=2&pause=0.01&concurrency=2")
    message = (
        rf"reward 'vlm_alignment' failed on 7 images \(prompts 'a cat', .*the server at {server.url}/chat/completions "
        r"gave no answer for the model 'tiny' in 3 attempts .*the last ended with RemoteDisconnected.*"
        r"resume the run from its checkpoint"
    )
    with pytest.raises(RewardError, match=message):
        evaluate_reward(reward, pictures(), PROMPTS)
    assert len(server.requests) <= 4 + 2 * 3  # what waited behind the failure was never sent
    server.stop()
    with pytest.raises(RewardError, match=r"in 3 attempts .*Connection refused"):
        evaluate_reward(reward, pictures(), PROMPTS)


def test_questions_may_name_fields_of_the_metadata(chat_server: Callable[..., Any], tiny_rewards: Path) -> None:
    """Each image has its record's question, behind a server and in this process; a missing field is named at once."""
    server, images = chat_server(), pictures(4)
    rows = [{"thing": "cat", "n": 2}, {"thing": "dog", "n": 1}] * 2
    options = "question=Are there {n} {thing}s in {prompt}?&template=The answer is {thing}"
    reward = resolve_reward(f"vlm_alignment?url={server.url}&model=tiny&concurrency=2&{options}")
    scores = evaluate_reward(reward, images, PROMPTS[:4], rows)
    levels = [int(picture.mean()) for picture in server.pictures]
    asked = [request["messages"][0]["content"][1]["text"] for request in server.requests]
    in_order = [text for _, text in sorted(zip(levels, asked, strict=True))]  # the pictures grow brighter
    assert in_order == [
        f"Are there {row['n']} {row['thing']}s in {prompt}?" for row, prompt in zip(rows, PROMPTS, strict=False)
    ]
    said = [server.describe(picture.permute(1, 2, 0).numpy()) for picture in images]
    wanted = [f"The answer is {row['thing']}" for row in rows]
    torch.testing.assert_close(scores, BERTScore(str(tiny_rewards / "bert"))(said, wanted))

    here = resolve_reward(f"vlm_alignment?max_new_tokens=4&{options}")
    captioner = Captioner(str(tiny_rewards / "captioner"), max_new_tokens=4)
    assert captioner(images, asked) == [captioner(images[i : i + 1], text)[0] for i, text in enumerate(asked)]
    with pytest.raises(ValueError, match="the reward 'vlm_alignment' needs the field 'n' of every prompt, but 'a' has"):
        check_metadata(here, [Prompt("a", metadata={"thing": "cat"})])


@pytest.mark.parametrize("status", ["400", "401", "404"])
def test_a_refusal_is_final(chat_server: Callable[..., Any], status: str) -> None:
    server = chat_server()
    server.behave = lambda attempt, picture: status
    with pytest.raises(
        RewardError, match=rf"refused .*status {status} .*the test says no.*Check url, model and the server's log"
    ):
        served(server.url)(pictures(1), QUESTION)
    assert len(server.requests) == 1


def test_the_key_comes_from_the_environment_and_is_never_told(
    chat_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = chat_server()
    monkeypatch.setenv("TINY_KEY", "open sesame")
    captioner = served(server.url, key_variable="TINY_KEY")
    captioner(pictures(1), QUESTION)
    assert server.headers[0]["Authorization"] == "Bearer open sesame"
    server.behave = lambda attempt, picture: "401"
    with pytest.raises(RewardError) as error:
        captioner(pictures(1), QUESTION)
    assert "sesame" not in str(error.value)
    assert "sesame" not in repr(vars(captioner))
    monkeypatch.delenv("TINY_KEY")
    with pytest.raises(ValueError, match="names the environment variable 'TINY_KEY', which is not set"):
        served(server.url, key_variable="TINY_KEY")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("url=http://127.0.0.1:1/v1", r"needs model=NAME"),
        ("url=127.0.0.1:8000&model=m", "url must begin with http:// or https://"),
        ("url=http://127.0.0.1:1/v1&model=m&concurrency=0", "concurrency >= 1"),
        ("url=http://127.0.0.1:1/v1&model=m&timeout=nan", "timeout > 0"),
        ("max_new_tokens=0", "max_new_tokens must be at least 1"),
        ("template=it", r"must hold \{prompt\}"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_rewards: Path, options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_reward(f"vlm_alignment?{options}")
