"""Aesthetic and CLIP score: by hand, LAION's file format, open_clip's preprocessing, and weights that are not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.rewards import check_reward, evaluate_reward, resolve_reward
from diffusion_gym.rewards.aesthetic import load_head
from diffusion_gym.rewards.models import clip
from diffusion_gym.rewards.models.clip import Clip, load_clip
from tests.builders.reward_models import head_tensors

PROMPTS = ["cat", "a dog", "an ant", "a fish riding a bike", "cat"]
LAION = (768, 1024, 128, 64, 16, 1)


def pictures(n: int = 5, height: int = 40, width: int = 24) -> Tensor:
    """Return smooth pictures, (n, 3, height, width), uint8, no two alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 10
    waves = [[np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 3, (3, 3))] for _ in range(n)]
    return torch.from_numpy((127.5 + 127.5 * np.array(waves)).astype(np.uint8))


def open_clip_embeddings(folder: Path, images: Tensor) -> Tensor:
    """Embed one Pillow image at a time through open_clip's own transform, in double precision from there."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    rows = [transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
    with torch.no_grad():
        return model.eval().double().encode_image(torch.stack(rows).double())


@pytest.mark.parametrize("size", [(40, 24), (24, 41), (8, 12), (16, 16), (100, 60)])
def test_preprocessing_is_open_clips_exactly(tiny_reward_models: Path, size: tuple[int, int]) -> None:
    """Also at hard edges, where resizing in one pass, as torchvision does with tensors, is 30 levels off."""
    import open_clip

    model = Clip(str(tiny_reward_models / "clip"), None)
    transform = open_clip.image_transform(16, is_train=False)
    images = torch.cat([pictures(2, *size), 255 * (pictures(2, *size) > 127).byte()])
    expected = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    assert torch.equal(model.preprocess(images), expected)


def test_aesthetic_by_hand(tiny_rewards: Path) -> None:
    from safetensors.torch import load_file

    images = pictures(height=16, width=16)  # no resizing, so that rounding of levels plays no part
    e = open_clip_embeddings(tiny_rewards / "clip", images)
    x = e / (e * e).sum(1, keepdim=True).sqrt()
    tensors = load_file(tiny_rewards / "aesthetic" / "head.safetensors")
    for layer in (0, 2, 4, 6, 7):
        x = x @ tensors[f"layers.{layer}.weight"].double().T + tensors[f"layers.{layer}.bias"].double()
    scores = evaluate_reward(resolve_reward("aesthetic?chunk_size=2"), images, PROMPTS)
    assert scores.tolist() == pytest.approx(x[:, 0].tolist(), abs=1e-5)
    assert len({round(score, 4) for score in scores.tolist()}) == 5


def test_clip_score_by_hand(tiny_rewards: Path) -> None:
    import open_clip

    images = pictures(height=16, width=16)
    seen = open_clip_embeddings(tiny_rewards / "clip", images)
    model = open_clip.create_model(f"local-dir:{tiny_rewards / 'clip'}").eval().double()
    tokenize = open_clip.get_tokenizer(f"local-dir:{tiny_rewards / 'clip'}")
    for spec, template, scale in (
        ("clip_score", "{}", 100),
        ("clip_score?scale=2.5&template=no {prompt}", "no {}", 2.5),
    ):
        with torch.no_grad():
            said = model.encode_text(tokenize([template.format(prompt) for prompt in PROMPTS]))
        cosines = (seen * said).sum(1) / seen.norm(dim=1) / said.norm(dim=1)
        scores = evaluate_reward(resolve_reward(spec), images, PROMPTS)
        assert scores.tolist() == pytest.approx((scale * cosines).tolist(), abs=1e-4)
        swapped = evaluate_reward(resolve_reward(spec), images, PROMPTS[::-1])
        assert not torch.allclose(scores, swapped, atol=1e-3)


# ---- LAION's head


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_laions_published_names_and_shapes_load(tmp_path: Path, form: str) -> None:
    from safetensors.torch import save_file

    tensors = head_tensors(LAION)
    assert tensors["layers.0.weight"].shape == (1024, 768)
    path = tmp_path / f"sac+logos+ava1-l14-linearMSE.{form}"
    torch.save(tensors, path) if form == "pth" else save_file(tensors, path)
    x = torch.nn.functional.normalize(torch.randn(3, 768, generator=torch.Generator().manual_seed(0)), dim=1).double()
    expected = x
    for layer in (0, 2, 4, 6, 7):
        expected = expected @ tensors[f"layers.{layer}.weight"].double().T + tensors[f"layers.{layer}.bias"].double()
    torch.testing.assert_close(load_head(str(path))(x.float()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda head: {name.replace("layers.2.", "layers.3."): tensor for name, tensor in head.items()},
            r"not a LAION head without activations.*'layers\.3\.bias'",
        ),
        (lambda head: {**head, "extra": torch.zeros(1)}, "not a LAION head"),
        (
            lambda head: {**head, "layers.7.weight": torch.zeros(2, 4), "layers.7.bias": torch.zeros(2)},
            "do not follow each other to one score",
        ),
        (lambda head: torch.zeros(3), "found Tensor"),
        (lambda head: {"layers.0.weight": print}, "cannot be loaded"),  # a pickle that names code
    ],
)
def test_other_files_are_refused(tmp_path: Path, make: Callable[[dict[str, Tensor]], object], message: str) -> None:
    torch.save(make(head_tensors((12, 16, 8, 8, 4, 1))), tmp_path / "head.pth")
    with pytest.raises(ValueError, match=message):
        load_head(str(tmp_path / "head.pth"))


def test_a_head_for_another_clip_is_refused(tiny_rewards: Path, tmp_path: Path) -> None:
    torch.save(head_tensors(LAION), tmp_path / "head.pth")
    with pytest.raises(ValueError, match="takes embeddings of size 768, but CLIP gives 12"):
        resolve_reward(f"aesthetic?head={tmp_path / 'head.pth'}")
    with pytest.raises(ValueError, match=r"needs its head too.*sac\+logos\+ava1-l14-linearMSE.pth"):
        resolve_reward(f"aesthetic?clip={tiny_rewards / 'clip'}")


# ---- where weights come from


def test_openais_weights_run_with_the_activation_they_were_trained_with() -> None:
    """open_clip's ViT-L-14 has GELU, OpenAI's weights QuickGELU, and open_clip only warns of the difference."""
    assert clip._arguments("ViT-L-14/openai") == {
        "model_name": "ViT-L-14",
        "pretrained": "openai",
        "force_quick_gelu": True,
    }
    assert "force_quick_gelu" not in clip._arguments("ViT-L-14/laion2b_s32b_b82k")


def test_models_are_loaded_once_and_only_when_built(tiny_rewards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    load = Clip.__init__

    def count(self: Clip, source: str, *rest: Any) -> None:
        built.append(source)
        load(self, source, *rest)

    monkeypatch.setattr(Clip, "__init__", count)
    load_clip.cache_clear()
    check_reward("aesthetic,clip_score:0.5")
    assert built == []
    for _ in range(2):
        resolve_reward("aesthetic,clip_score:0.5")
    assert built == [str(tiny_rewards / "clip")]


def test_a_file_of_weights_loads_under_its_architecture(tiny_reward_models: Path, tmp_path: Path) -> None:
    """``ARCHITECTURE/FILE``: open_clip's configuration by name, the weights from a path that begins with a slash."""
    import open_clip

    folder = tiny_reward_models / "clip"
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"].pop("hf_tokenizer_name")
    config["text_cfg"].update(vocab_size=49408, context_length=77)
    (tmp_path / "tiny-clip-of-a-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip-of-a-test.json")
    torch.save(open_clip.create_model("tiny-clip-of-a-test").state_dict(), tmp_path / "weights.pt")
    model = Clip(f"tiny-clip-of-a-test/{tmp_path / 'weights.pt'}", "cpu")
    assert model.dimension == 12
    lengths = model.embed_texts(["a cat", "a dog", "a cat"], 2).norm(dim=1)
    assert lengths.tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clip_score?clip=ViT-L-14", "names no CLIP; expected ARCHITECTURE/WEIGHTS"),
        ("clip_score?clip=no/folder", "names no CLIP"),
        ("clip_score?clip=ViT-L-14/opnai", r"'opnai' is no file, and ViT-L-14 has the weights \['openai'"),
        (
            "clip_score?clip=ViT-L-14/openai",
            r"hf download timm/vit_large_patch14_clip_224.openai .*clip=DIR",
        ),
        ("clip_score?clip=hf-hub:owner/model", "hf download owner/model --local-dir DIR"),
        ("aesthetic?head=none.pth", "head=none.pth is not a file. Download one.*improved-aesthetic-predictor"),
        ("aesthetic?head=owner/repository/head.pth", "hf download owner/repository head.pth .*head=DIR/head.pth"),
        (
            "vlm_alignment?model=llava-hf/llava-1.5-7b-hf",
            r"hf download llava-hf/llava-1.5-7b-hf .*model=DIR",
        ),
        ("vlm_alignment?bert=microsoft/deberta-xlarge-mnli", "hf download microsoft/deberta-xlarge-mnli .*bert=DIR"),
        ("vlm_alignment?bert=./no-such-folder", "Expected a folder or file with the weights"),
        ("clip_score?template=it", "must hold {prompt}"),
        ("clip_score?scale=nan", "scale must be a finite number"),
        ("aesthetic?chunk_size=0", "chunk_size must be an integer of at least 1"),
        ("aesthetic?device=quantum", "unknown device 'quantum'"),
        ("vlm_alignment?dtype=int8", r"dtype must be one of \['float32'"),
    ],
)
def test_errors_say_what_to_do(tiny_rewards: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    check_reward(spec)
    with pytest.raises(ValueError, match=message):
        resolve_reward(spec)


def test_missing_embedded_models_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffusion_gym.rewards.models import weights

    monkeypatch.setattr(weights, "EMBEDDED", tmp_path)
    with pytest.raises(ValueError, match=r"embedded reward model .*head.safetensors.* is missing"):
        resolve_reward("aesthetic")


def test_a_clip_that_does_not_run_is_refused_when_it_is_loaded(
    tiny_reward_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip.model import CLIP

    monkeypatch.setattr(CLIP, "encode_image", lambda self, image, normalize=False: image.mean((2, 3)))
    with pytest.raises(ValueError, match=r"clip=.* was loaded, but a first small input fails .*of one size"):
        Clip(str(tiny_reward_models / "clip"), None)
