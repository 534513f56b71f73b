"""The small reward models: how they are trained."""

import math

import pytest
import torch
from torch.nn import functional

from diffusion_gym._torchvision import repair_torchvision

repair_torchvision()

from benchmarks.pretrain.reward_models import captioner as llava  # noqa: E402
from benchmarks.pretrain.reward_models.aesthetic import colourfulness  # noqa: E402
from benchmarks.pretrain.reward_models.clip import contrastive_loss  # noqa: E402
from benchmarks.pretrain.reward_models.views import Views  # noqa: E402
from benchmarks.pretrain.world import Pictures  # noqa: E402
from diffusion_gym.prompts import ACTIVITIES, ANIMALS  # noqa: E402


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
