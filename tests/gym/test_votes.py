"""A person as the reward: votes over HTTP, the file of votes, replays, and who is let in."""

import hashlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.errors import Interrupted
from diffusion_gym.rewards import RewardError, Votes, evaluate_reward, resolve_reward
from diffusion_gym.rewards.attended import TrainingRun, begin_run, evaluating
from diffusion_gym.rewards.voting import page
from tests.builders.voter import Voter, question, request

PROMPTS = ["cat", "dog", "cat", "dog", "cat"]


@pytest.fixture
def images() -> Tensor:
    """Five pictures that differ."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8))


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every page that a test opened."""
    opened: list[page.VotingPage] = []
    ordinary = page.VotingPage.__init__

    def note(self: page.VotingPage, host: str, port: int) -> None:
        ordinary(self, host, port)
        opened.append(self)

    monkeypatch.setattr(page.VotingPage, "__init__", note)
    yield
    for each in opened:
        each.close()


def run_in(folder: Path, **changes: Any) -> TrainingRun:
    facts = {"images_per_prompt": 2, "num_envs": 4, "evaluates": False, "processes": 1, "should_stop": lambda: False}
    return TrainingRun(folder, **{**facts, **changes})


def test_the_best_of_each_prompt_is_one_wherever_its_pictures_are(images: Tensor, tmp_path: Path) -> None:
    reward = Votes(file=str(tmp_path / "votes.jsonl"))
    with Voter(lambda asked: {"best": 2 if asked["prompt"] == "cat" else None}, reward.address) as voter:
        scores = evaluate_reward(reward, images, PROMPTS, [{"kind": "pet"}] * 5)
    assert scores.tolist() == [0, 0, 0, 0, 1]
    shown = [(asked["prompt"], asked["mode"], asked["pictures"], asked["place"], asked["of"]) for asked in voter.asked]
    assert shown == [("cat", "best", 3, 1, 2), ("dog", "best", 2, 2, 2)]
    lines = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    digests = [hashlib.sha256(b"(3, 4, 6)" + image.numpy().tobytes()).hexdigest() for image in images]
    assert [line.pop("pictures") for line in lines] == [digests[0::2], digests[1::2]]
    assert all(line.pop("time") > 1.7e9 for line in lines)
    assert lines == [
        {"prompt": "cat", "metadata": {"kind": "pet"}, "mode": "best", "rewards": [0.0, 0.0, 1.0]},
        {"prompt": "dog", "metadata": {"kind": "pet"}, "mode": "best", "rewards": [0.0, 0.0]},
    ]


def test_a_picture_alone_is_graded_and_grades_lie_between_0_and_1(images: Tensor) -> None:
    reward = resolve_reward("votes?grades=3&group=2")
    with Voter(lambda asked: {"grades": [3, 2][: asked["pictures"]]}, reward.address) as voter:
        scores = evaluate_reward(reward, images, PROMPTS)
    assert scores.tolist() == [1, 1, 0.5, 0.5, 1]  # cat, dog, cat, dog; the third cat by itself
    assert [asked["pictures"] for asked in voter.asked] == [2, 1, 2]
    assert {asked["mode"] for asked in voter.asked} == {"grade"}
    with pytest.raises(RewardError, match="one of the prompt 'cat' is alone among 5; set images_per_prompt"):
        evaluate_reward(resolve_reward("votes?mode=best&group=2"), images, PROMPTS)


def test_the_page_is_for_who_knows_the_token_and_takes_one_right_answer(images: Tensor) -> None:
    reward = Votes(mode="grade", group=2)
    scores: list[Tensor] = []
    address = reward.address
    asking = threading.Thread(target=lambda: scores.append(reward(images[:2], ["cat"] * 2)), daemon=True)
    asking.start()
    asked = question(address)
    root, token = address.split("/")[2], address.split("/")[3]
    others = ["", "question", f"{token[:-1]}/question", f"x{token}/", f"{token}x/{asked['number']}/0.png"]
    assert {request(f"http://{root}/{path}")[0] for path in others} == {403}
    right = {"number": asked["number"], "grades": [1, 5]}
    assert request(f"http://{root}/answer", right)[0] == 403

    assert b"<!doctype html>" in request(address)[1]
    content = request(f"{address}{asked['number']}/1.png")[1]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), images[1].permute(1, 2, 0))
    assert {request(f"{address}{path}")[0] for path in ("1/2.png", "7/0.png", "1/x.png", "1/0.gif", "more")} == {404}

    for wrong in ([1], [0, 5], [1, 6], [1, True], "15", None):
        status, text = request(f"{address}answer", {"number": asked["number"], "grades": wrong})
        assert (status, text.decode()[:39]) == (400, "expected a grade from 1 to 5 for each o")
    assert request(f"{address}answer", [1, 5])[0] == 400
    assert request(f"{address}answer", {**right, "number": 9})[0] == 409
    assert not scores
    assert request(f"{address}answer", right)[0] == 200
    asking.join(10)
    assert scores[0].tolist() == [0, 1]
    assert request(f"{address}answer", right)[0] == 409


def test_votes_in_the_file_are_not_asked_again_and_a_replay_asks_nobody(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = Votes()
    begin_run(reward, run_in(tmp_path))
    with Voter(lambda asked: {"best": 1}, reward.address):
        before = reward(images[:4], ["cat", "cat", "dog", "dog"])
    file = tmp_path / "votes.jsonl"
    with file.open("a") as torn:
        torn.write('{"prompt": "do')  # a process was killed here

    resumed = Votes()
    begin_run(resumed, run_in(tmp_path))
    with Voter(lambda asked: {"best": 0}, resumed.address) as voter:
        assert torch.equal(resumed(images[:4], ["cat", "cat", "dog", "dog"]), before)
        assert not voter.asked
        assert resumed(images[[4, 0]], ["dog", "dog"]).tolist() == [1, 0]
        assert len(voter.asked) == 1
    graded = Votes(mode="grade")
    begin_run(graded, run_in(tmp_path))
    with Voter(lambda asked: {"grades": [5, 3]}, graded.address):
        assert graded(images[[4, 3]], ["dog", "dog"]).tolist() == [1, 0.5]
        assert graded(images[[4, 0]], ["dog", "dog"]).tolist() == [1, 0.5], "a pick is not a grade"

    monkeypatch.setattr(page, "VotingPage", None)  # nothing may be opened
    replayed = resolve_reward(f"votes?replay={file}")
    begin_run(replayed, run_in(tmp_path / "other"))
    assert torch.equal(replayed(images[:4], ["cat", "cat", "dog", "dog"]), before)
    assert replayed(images[[4, 3]], ["dog", "dog"]).tolist() == [1, 0.5]
    with pytest.raises(RewardError, match=r"has none on 2 pictures of the prompt 'cat', and 1 more such groups"):
        evaluate_reward(replayed, images[[1, 0, 3, 2]], ["cat", "cat", "dog", "dog"])


def test_evaluations_take_another_reward_also_in_a_sum(images: Tensor) -> None:
    reward = resolve_reward("votes?evaluate=incompressibility:2,compressibility")
    expected = resolve_reward("incompressibility")(images, PROMPTS)
    with evaluating(reward):
        assert torch.equal(evaluate_reward(reward, images, PROMPTS), expected)
    with (
        pytest.raises(ValueError, match=r"name the reward that scores them, for example votes\?evaluate=aesthetic"),
        evaluating(Votes()),
    ):
        pass


def test_a_wait_ends_when_the_run_is_to_stop(images: Tensor, tmp_path: Path) -> None:
    reward, looks = Votes(), iter([False, False, True])
    begin_run(reward, run_in(tmp_path, should_stop=lambda: next(looks)))
    with pytest.raises(Interrupted):
        evaluate_reward(reward, images[:2], ["cat", "cat"])
    assert json.loads(request(f"{reward.address}question")[1]) == {"number": None}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("mode=worst", r"mode must be one of \['auto', 'best', 'grade'\], got 'worst'"),
        ("grades=1", "grades must lie in 2 to 9, the keys that give them, got 1"),
        ("group=0", "group must be at least 1, got 0"),
        ("replay=none.jsonl", "there is no file of votes '.*none.jsonl'; expected a run's votes.jsonl"),
        ("replay=log.jsonl", "'.*log.jsonl' is not a file of votes .*; expected lines with prompt, metadata, pictures"),
        ("replay=text.jsonl", "line 1 of '.*text.jsonl' is damaged"),
        ("file=no/votes.jsonl", "there is no folder '.*no' to keep votes in"),
        ("file=a.jsonl&replay=log.jsonl", "a file to keep votes in, or one to replay, not both"),
        ("evaluate=votes", "evaluate='votes' would ask, too; expected a reward that needs nobody"),
        ("evaluate=beauty", "unknown reward 'beauty'"),
    ],
)
def test_bad_options_are_answered_in_a_sentence(
    options: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").write_text('{"prompt": "cat", "metadata": {}, "pictures": ["1", "2"], "rewards": [1]}\n')
    Path("text.jsonl").write_text("five stars\n")
    with pytest.raises(ValueError, match=words):
        resolve_reward(f"votes?{options}")


def test_runs_in_which_nobody_can_be_asked_are_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for reward, changes, words in [
            (
                Votes(port=port),
                {},
                rf"cannot listen on '127.0.0.1', port {port} \(Address already in use\); name another",
            ),
            (Votes(port=70000), {}, "port 70000 .*; name another port, or none"),
            (Votes(host="no.such.host.invalid"), {}, "cannot listen on 'no.such.host.invalid'"),
            (Votes(), {"processes": 2}, "votes asks from one process, got 2"),
            (Votes(), {"num_envs": 3}, r"num_envs \(3\) must be a multiple of images_per_prompt \(2\)"),
            (Votes(), {"evaluates": True}, "votes asks nobody about the images of evaluations"),
        ]:
            with pytest.raises(ValueError, match=words):
                begin_run(reward, run_in(tmp_path, **changes))


def test_a_page_that_others_can_reach_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(page, "announce", said.append)
    address = Votes(host="0.0.0.0").address
    assert socket.gethostname() in address
    assert said[0] == f"votes: open {address} to be the reward"
    assert "other machines can reach this page" in said[1]
