"""The small reward models: how they are trained, and that the shipped ones see what the embedded model draws."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffusion_gym_torchvision import repair_torchvision

repair_torchvision()

from benchmarks.pretrain.judge import load_judge  # noqa: E402
from benchmarks.pretrain.pipeline import generate, load_pipeline  # noqa: E402
from benchmarks.pretrain.reward_models import captioner as llava  # noqa: E402
from benchmarks.pretrain.reward_models.aesthetic import SCALE, colourfulness, rank_correlation  # noqa: E402
from benchmarks.pretrain.reward_models.card import RewardModels, look, read, score_bert  # noqa: E402
from benchmarks.pretrain.reward_models.clip import contrastive_loss  # noqa: E402
from benchmarks.pretrain.reward_models.views import Views  # noqa: E402
from benchmarks.pretrain.world import Pictures  # noqa: E402
from diffusion_gym.models.loading import ASSETS  # noqa: E402
from diffusion_gym.prompts import ACTIVITIES, ANIMALS  # noqa: E402
from diffusion_gym.rewards.models.weights import EMBEDDED  # noqa: E402


def test_colourfulness_by_hand() -> None:
    """Grey is 0, a plain colour is 0.3 times its distance from grey, and half red, half blue adds their spread."""
    grey = torch.full((1, 3, 2, 2), 77)
    red = torch.tensor([200.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    halves = red.clone()
    halves[..., 1] = torch.tensor([0.0, 0.0, 100.0])[None, :, None]
    assert colourfulness(grey).tolist() == [0.0]
    assert colourfulness(red).item() == pytest.approx(0.3 * math.hypot(200, 100), rel=1e-6)
    # rg: 200 and 0; yb: 100 and -100. Deviations 100 and 100, means 100 and 0.
    assert colourfulness(halves).item() == pytest.approx(math.hypot(100, 100) + 0.3 * 100, rel=1e-6)


def test_contrastive_loss_is_clips() -> None:
    """With one text a picture it is open_clip's loss; two texts that fit share the picture."""
    from open_clip.loss import ClipLoss

    generator = torch.Generator().manual_seed(0)
    image, text = (functional.normalize(torch.randn(5, 8, generator=generator), dim=1) for _ in range(2))
    ours = contrastive_loss(10.0 * image @ text.T, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(ours, ClipLoss()(image, text, torch.tensor(10.0)))
    logits = torch.tensor([[9.0, 9.0, -9.0], [-9.0, -9.0, 9.0]])
    fits = torch.tensor([[True, True, False], [False, False, True]])
    # The first picture's two texts have probability 1/2 each; all else is certain: 2 of 6 terms are log 2.
    assert contrastive_loss(logits, fits).item() == pytest.approx(2 * math.log(2) / 6, abs=1e-6)


def test_captioner_is_trained_on_what_it_is_asked() -> None:
    """Only answer and end are learned; the tokens are the processor's own for the chat template; answers keep order."""
    tokenizer = llava.build_captioner_tokenizer()
    processor = llava.build_processor(tokenizer)
    ids, labels = llava.conversations(tokenizer)
    answers = llava.answers()
    spider = 4 * ANIMALS.index("spider") + 1 + ACTIVITIES.index("playing chess")
    assert answers[spider] == "a spider playing chess"
    assert answers[4 * ANIMALS.index("ant")] == "an ant"
    learned = labels[0, spider][labels[0, spider] != -100]
    assert tokenizer.decode(learned) == "a spider playing chess </s>"
    content = [{"type": "image"}, {"type": "text", "text": llava.QUESTIONS[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    asked = processor(images=[torch.zeros(3, 64, 64, dtype=torch.uint8)], text=[prompt], return_tensors="pt")
    length = asked["input_ids"].shape[1]
    assert torch.equal(ids[0, spider, :length], asked["input_ids"][0])
    assert (labels[0, spider, :length] == -100).all()
    assert tokenizer.unk_token_id not in ids


def test_views_show_copies_for_half_of_the_rows_that_have_one() -> None:
    """Rows without a copy are never black, rows with one are about half of the time; the stream decides."""
    images = torch.full((40, 3, 64, 64), 255, dtype=torch.uint8).numpy()
    labels = torch.zeros(40, dtype=torch.int64).numpy()
    views = Views(Pictures(images, labels, labels, labels), images[:20] * 0)
    rows, pixels = views.draw(400, torch.Generator().manual_seed(0))
    black = pixels.mean(dim=(1, 2, 3)) < 0
    assert not black[rows >= 20].any()
    assert 0.35 < black[rows < 20].float().mean() < 0.65
    assert pixels.abs().max() <= 1
    assert torch.equal(views.draw(400, torch.Generator().manual_seed(0))[1], pixels)


@pytest.fixture(scope="module")
def models() -> RewardModels:
    """Return the shipped models."""
    return RewardModels.load(EMBEDDED)


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """Return the embedded model's picture of each animal, (45, 3, 64, 64) uint8, from seeds that no card uses."""
    return generate(load_pipeline(ASSETS / "emoji-animals"), ANIMALS, range(1000, 1000 + len(ANIMALS)))


def test_shipped_models_see_the_animals(models: RewardModels, drawn: Tensor) -> None:
    """On fresh generated pictures, CLIP and captioner name the judge's animal in at least 80 %, and each other's."""
    judged = load_judge().recognise(drawn).animal
    clip, captioner = look(models.clip, drawn), read(models.captioner, drawn)
    assert (clip.animal == judged).float().mean() >= 0.8
    assert (captioner.animal == judged).float().mean() >= 0.8
    assert (captioner.animal == clip.best.animal).float().mean() >= 0.8


def test_shipped_aesthetic_head_ranks_by_colourfulness(models: RewardModels, drawn: Tensor) -> None:
    """The head's scores follow the computed measure that they stand for, in rank and in scale."""
    score = models.head(models.clip.embed_images(drawn, 64)).squeeze(-1)
    truth = colourfulness(drawn) / SCALE
    assert rank_correlation(score, truth) >= 0.9
    assert (score - truth).abs().mean() < 1.0


def test_shipped_bert_knows_animals_and_activities(models: RewardModels) -> None:
    """The true caption's recall is above a wrong one's in at least 95 % of all pairs of the world's captions."""
    kinds = score_bert(models.bertscore)["kinds"]
    assert kinds["wrong_animal"]["true_above"] >= 0.95
    assert kinds["wrong_activity"]["true_above"] >= 0.95


def test_shipped_models_are_small_and_explained() -> None:
    """The folder stays under 12 MB, names no path of its maker's machine, and its card says what the head is."""
    files = [file for file in EMBEDDED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
    card = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert "stands in for LAION's" in card
    assert "high score says colourful, not beautiful" in card
    assert not any(str(Path.home()) in file.read_text(encoding="utf-8") for file in files if file.suffix == ".json")
