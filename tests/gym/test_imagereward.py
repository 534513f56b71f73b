"""ImageReward: a small file under the published names, its score by hand after the package's own code."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffusion_gym.rewards import Reward, evaluate_reward, resolve_reward
from tests.builders.reward_models import MEAN, STD, imagereward_tensors
from tests.builders.tokenizers import word_tokenizer

PROMPTS = ["a cat", "a dog riding a bike", "fish", "a cat washing dishes", "a cat"]


def pictures() -> Tensor:
    return torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ImageReward.pt in small and a tokenizer like BERT's."""
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(imagereward_tensors(), folder / "ImageReward.pt")
    roles = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{role}_token": f"[{role.upper()}]" for role in roles}
    word_tokenizer(special, "[CLS] $A [SEP]").save_pretrained(folder / "bert")
    return folder


class Published:
    """BLIP's vision transformer and text encoder, and ImageReward's head, written out in double precision."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = {name: value.double() for name, value in tensors.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt() * weight + bias

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of heads of width 64 for one image: (L, D)."""
        q, k, v = (part.unflatten(1, (-1, 64)).transpose(0, 1) for part in (q, k, v))
        return ((q @ k.transpose(1, 2) / 8).softmax(-1) @ v).transpose(0, 1).flatten(1)

    def see(self, image: Tensor) -> Tensor:
        root = "blip.visual_encoder"
        levels = (image.double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        kernel, bias = (self.tensors[f"{root}.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
        patches = functional.conv2d(levels[None], kernel, bias, stride=8)[0].flatten(1).T
        x = torch.cat([self.tensors[f"{root}.cls_token"][0], patches]) + self.tensors[f"{root}.pos_embed"][0]
        for k in range(2):
            block = f"{root}.blocks.{k}"
            parts = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, 1)
            x = x + self.linear(f"{block}.attn.proj", self.attend(*parts))
            hidden = functional.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        return self.norm(f"{root}.norm", x, 1e-6)

    def score(self, image: Tensor, ids: list[int]) -> Tensor:
        """Score one picture with the tokens of its prompt, without padding."""
        seen, root = self.see(image), "blip.text_encoder"
        x = self.tensors[f"{root}.embeddings.word_embeddings.weight"][ids]
        x = x + self.tensors[f"{root}.embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(f"{root}.embeddings.LayerNorm", x, 1e-12)
        for k in range(2):
            layer = f"{root}.encoder.layer.{k}"
            for kind in ("attention", "crossattention"):
                given = x if kind == "attention" else seen
                q = self.linear(f"{layer}.{kind}.self.query", x)
                attended = self.attend(q, *(self.linear(f"{layer}.{kind}.self.{p}", given) for p in ("key", "value")))
                x = self.norm(
                    f"{layer}.{kind}.output.LayerNorm", x + self.linear(f"{layer}.{kind}.output.dense", attended), 1e-12
                )
            hidden = self.linear(
                f"{layer}.output.dense", functional.gelu(self.linear(f"{layer}.intermediate.dense", x))
            )
            x = self.norm(f"{layer}.output.LayerNorm", x + hidden, 1e-12)
        y = x[0]
        for k in (0, 2, 4, 6, 7):
            y = self.linear(f"mlp.layers.{k}", y)
        return (y[0] - 0.16717362830052426) / 1.0333394966054072


def test_score_by_hand_batched_alone_and_from_pixels(files: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files / "bert")
    published = Published(imagereward_tensors())
    expected = [published.score(i, tokenizer(p)["input_ids"]) for i, p in zip(pictures(), PROMPTS, strict=True)]
    reward = resolve_reward(
        f"imagereward?checkpoint={files / 'ImageReward.pt'}&tokenizer={files / 'bert'}&chunk_size=2"
    )
    assert isinstance(reward, Reward)
    scores = evaluate_reward(reward, pictures(), PROMPTS)
    torch.testing.assert_close(scores.double(), torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert torch.stack(expected).std() > 0.05
    alone = [evaluate_reward(reward, pictures()[k : k + 1], [PROMPTS[k]]) for k in range(5)]
    torch.testing.assert_close(torch.cat(alone), scores, atol=1e-6, rtol=1e-6)  # a row's place in its chunk may round
    pixels = (pictures() / 255).requires_grad_()
    torch.testing.assert_close(reward.pixels(pixels, PROMPTS), scores, atol=1e-4, rtol=1e-4)  # type: ignore[attr-defined]
    (gradient,) = torch.autograd.grad(reward.pixels(pixels, PROMPTS).sum(), pixels)  # type: ignore[attr-defined]
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blip.visual_encoder.norm.bias", None, r"does not hold ImageReward's weights: .*post_layernorm.bias"),
        ("blip.text_encoder.encoder.layer.1.crossattention.self.key.weight", None, r"Missing key.*crossattention"),
        ("mlp.layers.7.bias", None, r"does not hold ImageReward's weights: .*layers.7.bias"),
        ("blip.visual_encoder.patch_embed.proj.weight", None, "does not hold ImageReward's weights"),
        ("other.weight", torch.zeros(1), r"'other.weight' is not among its names"),
    ],
)
def test_other_files_are_refused(files: Path, tmp_path: Path, name: str, value: Tensor | None, message: str) -> None:
    tensors = imagereward_tensors() | ({} if value is None else {name: value})
    if value is None:
        del tensors[name]
    torch.save(tensors, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"(?s)checkpoint={tmp_path}/other.pt .*{message}"):
        resolve_reward(f"imagereward?checkpoint={tmp_path / 'other.pt'}&tokenizer={files / 'bert'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"hf download THUDM/ImageReward ImageReward.pt --local-dir DIR.*checkpoint=DIR/ImageReward.pt"),
        ("checkpoint=none.pt", "checkpoint=none.pt is not a file. Download one, .*huggingface.co/THUDM/ImageReward"),
        ("checkpoint={}", r"hf download google-bert/bert-base-uncased --local-dir DIR.*tokenizer=DIR"),
    ],
)
def test_errors_say_what_to_do(files: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    options = options.format(files / "ImageReward.pt")
    with pytest.raises(ValueError, match=message):
        resolve_reward(f"imagereward?{options}" if options else "imagereward")
