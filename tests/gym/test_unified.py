"""A vision-language model as the judge: the number in its answer, and answers without one, served and in process."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_gym.prompts import Prompt
from diffusion_gym.rewards import Reward, RewardError, Unified, check_reward, evaluate_reward, resolve_reward
from diffusion_gym.rewards.metadata import check_metadata
from diffusion_gym.rewards.models.captioner import Captioner
from diffusion_gym.rewards.unified import QUESTION, REMINDER


def pictures(n: int = 4) -> Tensor:
    """Return plain pictures that grow brighter, (n, 3, 16, 16), uint8."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 16, 16) * 20 + 10


def text_of(request: dict[str, Any]) -> str:
    return request["messages"][0]["content"][1]["text"]


@pytest.fixture
def judge(chat_server: Callable[..., Any]) -> Any:
    return chat_server()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Final Score: 4", 4.0),
        ("cat (animal): 1\nFinal Score: 3.5", 3.5),
        ("**Final Score: [2]**", 2.0),
        ("Final Score: **5**", 5.0),
        ("Final Score: 1 would be harsh.\nFinal Score: 4", 4.0),  # the last counts
        ("Final Score: 45", None),  # not 4, as a pattern of one digit would read it
        ("Final Score: 0", None),
        ("4 out of 5", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(judge: Any, answer: str, expected: float | None) -> None:
    reward = Unified(url=judge.url, model="judge")
    assert reward.number(answer) == expected
    assert judge.requests == []


def test_each_picture_is_asked_with_its_prompt_and_scored_by_its_answer(judge: Any) -> None:
    judge.behave = lambda attempt, picture: f"say:Final Score: {1 + len(judge.requests) % 5}"
    reward = resolve_reward(f"unified?url={judge.url}&model=judge&concurrency=1")
    assert isinstance(reward, Reward)
    prompts = ["a cat", "a dog", "two {fish}", "an ant"]
    scores = evaluate_reward(reward, pictures(), prompts)
    assert scores.tolist() == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert [text_of(request) for request in judge.requests] == [QUESTION.replace("{prompt}", each) for each in prompts]
    assert judge.requests[0]["max_tokens"] == 256


def test_other_scales_questions_and_patterns(judge: Any) -> None:
    judge.behave = lambda attempt, picture: "say:I rate it 7/10"
    options = r"question=Rate the {style} of {prompt}.&pattern=(\d+)/10&low=0&high=10"
    reward = resolve_reward(f"unified?url={judge.url}&model=judge&{options}")
    scores = evaluate_reward(reward, pictures(1), ["a cat"], [{"style": "light"}])
    assert scores.tolist() == pytest.approx([0.7])
    assert text_of(judge.requests[0]) == "Rate the light of a cat."
    with pytest.raises(ValueError, match="'unified' needs the field 'style' of every prompt, but 'a' has no metadata"):
        check_metadata(reward, [Prompt("a")])


def test_only_what_was_not_answered_is_asked_again_with_a_reminder(judge: Any) -> None:
    dark = {0: "say:It is a nice picture.", 1: "say:Final Score: 2"}
    first = pictures(1)[0].permute(1, 2, 0).numpy()

    def behave(attempt: int, picture: bytes) -> str:
        return dark[attempt] if (judge.pictures[-1] == first).all() else "say:Final Score: 5"

    judge.behave = behave
    reward = resolve_reward(f"unified?url={judge.url}&model=judge&concurrency=1")
    assert evaluate_reward(reward, pictures(), ["a cat"] * 4).tolist() == pytest.approx([0.4, 1.0, 1.0, 1.0])
    assert len(judge.requests) == 5
    assert text_of(judge.requests[-1]) == text_of(judge.requests[0]) + REMINDER


def test_a_picture_without_a_number_is_an_error_or_has_the_reward_that_was_named(judge: Any) -> None:
    judge.behave = lambda attempt, picture: "say:Lovely."
    message = (
        r"reward 'unified' failed on 2 images .*the model 'judge' gave no number from 1 to 5 for the prompt 'a cat' in "
        r"3 attempts; it last answered 'Lovely\.'\. Change question, pattern or max_new_tokens"
    )
    spec = f"unified?url={judge.url}&model=judge&attempts=3"
    with pytest.raises(RewardError, match=message):
        evaluate_reward(resolve_reward(spec), pictures(2), ["a cat"] * 2)
    assert len(judge.requests) == 6
    assert evaluate_reward(resolve_reward(f"{spec}&missing=0"), pictures(2), ["a cat"] * 2).tolist() == [0.0, 0.0]


def test_passing_failures_of_the_server_are_overcome(judge: Any) -> None:
    judge.behave = lambda attempt, picture: "503" if attempt == 0 else "say:Final Score: 3"
    reward = resolve_reward(f"unified?url={judge.url}&model=judge&pause=0.01&retries=1")
    assert evaluate_reward(reward, pictures(2), ["a cat"] * 2).tolist() == pytest.approx([0.6, 0.6])


def test_a_model_in_this_process_is_asked_the_same(tiny_reward_models: Path) -> None:
    """A LLaVA of random words: the pattern counts one of its words as a number is not; batched equals alone."""
    folder = str(tiny_reward_models / "captioner")
    question = "what is in the image {prompt}"
    answers = Captioner(folder, max_new_tokens=8)(
        pictures(), [question.replace("{prompt}", p) for p in ("cat", "dog") * 2]
    )
    assert not any(re.search(r"\d", answer) for answer in answers)
    spec = f"unified?model={folder}&max_new_tokens=8&question={question}&missing=0.25&attempts=1"
    reward = resolve_reward(spec)
    asked: list[str] = []
    describe = reward._ask  # type: ignore[attr-defined]

    def numbered(images: Tensor, questions: list[str]) -> list[str]:
        given = describe(images, questions)
        asked.extend(given)
        return [f"Final Score: {1 + len(text) % 5}" for text in given]

    assert evaluate_reward(reward, pictures(), ["cat", "dog"] * 2).tolist() == [0.25] * 4
    reward._ask = numbered  # type: ignore[attr-defined]
    scores = evaluate_reward(reward, pictures(), ["cat", "dog"] * 2)
    assert asked == answers
    alone = [evaluate_reward(reward, pictures()[k : k + 1], [("cat", "dog")[k % 2]]) for k in range(4)]
    assert torch.equal(scores, torch.cat(alone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("attempts=1", "unified needs a vision-language model: model=FOLDER or a hub id, or url="),
        ("url=http://127.0.0.1:1/v1", "unified with url=http://127.0.0.1:1/v1 needs model=NAME"),
        ("model=m&low=5&high=5", "expected low < high and high > 0, got low=5.0 and high=5.0"),
        ("model=m&low=nan", "expected low < high"),
        ("model=m&attempts=0", "attempts must be at least 1, got 0"),
        ("model=m&missing=inf", "missing must be a finite number, got inf"),
        ("model=m&pattern=(", r"pattern='\(' is no regular expression"),
        ("model=m&pattern=[0-9]", r"pattern='\[0-9\]' needs a group around the number"),
        ("model=m&max_new_tokens=0", "max_new_tokens must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: str, message: str) -> None:
    check_reward(f"unified?{options}")
    with pytest.raises(ValueError, match=message):
        resolve_reward(f"unified?{options}")
