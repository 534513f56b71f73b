"""PickScore and HPSv2: files of the published names and shapes in small, scores by hand, batches as single images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_gym.rewards import Reward, check_reward, evaluate_reward, resolve_reward
from diffusion_gym.rewards import hpsv2 as hpsv2_module
from tests.builders.reward_models import MEAN, STD, build_pickscore, pickscore_tensors

ARCHITECTURE = hpsv2_module.ARCHITECTURE
PROMPTS = ["cat", "a dog", "an ant", "a fish riding a bike", "cat"]


def pictures(n: int = 5, height: int = 16, width: int = 16) -> Tensor:
    """Return smooth pictures, (n, 3, height, width), uint8, no two alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 10
    waves = [[np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 3, (3, 3))] for _ in range(n)]
    return torch.from_numpy((127.5 + 127.5 * np.array(waves)).astype(np.uint8))


def pillow(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def check_scores(spec: str, expected: Tensor, tolerance: float) -> None:
    """Compare a reward's scores of the five pictures, in a batch, alone, and from pixels."""
    reward, images = resolve_reward(spec), pictures()
    assert isinstance(reward, Reward)
    assert reward.name == spec.partition("?")[0]
    scores = evaluate_reward(reward, images, PROMPTS)
    torch.testing.assert_close(scores.double(), expected, atol=tolerance, rtol=0)
    assert expected.std() > 50 * tolerance
    alone = [evaluate_reward(reward, images[k : k + 1], [PROMPTS[k]]) for k in range(5)]
    assert torch.equal(scores, torch.cat(alone))
    pixels = (images / 255).requires_grad_()
    torch.testing.assert_close(reward.pixels(pixels, PROMPTS), scores, atol=tolerance, rtol=0)  # type: ignore[attr-defined]
    (gradient,) = torch.autograd.grad(reward.pixels(pixels, PROMPTS).sum(), pixels)  # type: ignore[attr-defined]
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


# ---- PickScore


@pytest.fixture(scope="module")
def pickscore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pickscore")
    build_pickscore(folder)
    return folder


def test_pickscore_is_its_model_cards_recipe(pickscore: Path) -> None:
    """exp(logit_scale) * cosine, with transformers' own processor and features in double precision."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(pickscore).eval().double()
    processor = CLIPProcessor.from_pretrained(pickscore)
    rows = []
    with torch.no_grad():
        for image, prompt in zip(pillow(pictures()), PROMPTS, strict=True):
            inputs = processor(images=image, text=prompt, truncation=True, max_length=16, return_tensors="pt")
            inputs["pixel_values"] = inputs["pixel_values"].double()
            rows.append(model(**inputs).logits_per_image[0, 0])
    check_scores(f"pickscore?model={pickscore}&processor={pickscore}&chunk_size=2", torch.stack(rows), 1e-3)


def test_every_published_weight_is_used(pickscore: Path) -> None:
    """Names and shapes as in the file of CLIP-H, which still has position_ids; the learned scale is the factor."""
    from diffusion_gym.rewards.models.clip_transformers import load_transformers_clip

    clip = load_transformers_clip(str(pickscore), str(pickscore), None)
    loaded, tensors = clip._model.state_dict(), pickscore_tensors()
    assert set(tensors) - set(loaded) == {f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")}
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.items())
    assert clip.logit_scale == pytest.approx(100.0, rel=1e-6)


def test_clip_h_has_these_names_and_shapes() -> None:
    """The small file's names at CLIP-H's sizes are those of transformers' model; open_clip's for HPSv2 is as large."""
    import open_clip
    from transformers import CLIPConfig, CLIPModel

    expected = pickscore_tensors("meta", (1280, 32, 14, 224), (1024, 24, 49408, 77), 1024)
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        config = CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 14}, projection_dim=1024)
        model = CLIPModel(config).state_dict()
    assert {name: value.shape for name, value in model.items()} == {
        name: value.shape for name, value in expected.items() if not name.endswith("position_ids")
    }
    sizes = open_clip.get_model_config(ARCHITECTURE)
    assert (sizes["embed_dim"], sizes["vision_cfg"]["layers"], sizes["text_cfg"]["layers"]) == (1024, 32, 24)
    assert (sizes["vision_cfg"]["width"], sizes["vision_cfg"]["patch_size"], sizes["text_cfg"]["width"]) == (
        1280,
        14,
        1024,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("visual_projection.weight"), r"lacks the weights \['visual_projection.weight'\]"),
        (lambda tensors: tensors.pop("logit_scale"), r"lacks the weights \['logit_scale'\]; expected a CLIPModel"),
        (lambda tensors: tensors.update({"logit_scale": torch.zeros(2, 2)}), "cannot be loaded"),
    ],
)
def test_a_file_that_lacks_weights_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    """transformers would fill them with random numbers."""
    tensors = pickscore_tensors()
    change(tensors)
    build_pickscore(tmp_path, tensors)
    with pytest.raises(ValueError, match=message):
        resolve_reward(f"pickscore?model={tmp_path}&processor={tmp_path}")


def test_a_processor_that_prepares_pictures_in_another_way_is_refused(pickscore: Path, tmp_path: Path) -> None:
    build_pickscore(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_center_crop": False}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"processor={tmp_path} resizes to .*expected CLIP's: the shorter side"):
        resolve_reward(f"pickscore?model={pickscore}&processor={tmp_path}")


# ---- HPSv2


@pytest.fixture(scope="module")
def hpsv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint like HPS_v2.1_compressed.pt: a ``state_dict`` under open_clip's names, of a small model."""
    import open_clip

    folder = tmp_path_factory.mktemp("hpsv2")
    vision = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    (folder / "tiny-vit-h.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / "tiny-vit-h.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = open_clip.create_model("tiny-vit-h").state_dict()
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return folder / "HPS_v2.1_compressed.pt"


@pytest.fixture(autouse=True)
def small_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpsv2_module, "ARCHITECTURE", "tiny-vit-h")


def published(model: torch.nn.Module, image: Image.Image, prompt: str) -> Tensor:
    """Score one picture as hpsv2.score does: its ResizeMaxSize and padding, features of length 1, no logit scale."""
    import open_clip

    scale = 16 / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    square = Image.new("RGB", (16, 16))  # black
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((16 - width) // 2, (16 - height) // 2))
    levels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    inputs = (levels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        seen, said, _ = model(inputs[None].double(), open_clip.tokenize([prompt]))
    return (seen @ said.T)[0, 0]


def test_hpsv2_is_its_packages_score(hpsv2: Path) -> None:
    import open_clip

    model = open_clip.create_model("tiny-vit-h").eval()
    model.load_state_dict(torch.load(hpsv2, weights_only=True)["state_dict"])
    model.double()
    expected = torch.stack([published(model, *pair) for pair in zip(pillow(pictures()), PROMPTS, strict=True)])
    check_scores(f"hpsv2?checkpoint={hpsv2}&chunk_size=2", expected, 1e-5)
    for size in ((24, 40), (41, 24), (9, 12)):  # padded, not cropped
        images = pictures(5, *size)
        expected = torch.stack([published(model, *pair) for pair in zip(pillow(images), PROMPTS, strict=True)])
        scores = evaluate_reward(resolve_reward(f"hpsv2?checkpoint={hpsv2}"), images, PROMPTS)
        torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


def test_hpsv2_refuses_other_weights(hpsv2: Path, tmp_path: Path) -> None:
    state = torch.load(hpsv2, weights_only=True)["state_dict"]
    del state["visual.proj"]
    torch.save({"state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"the weights checkpoint=.*other.pt cannot be loaded \(RuntimeError"):
        resolve_reward(f"hpsv2?checkpoint={tmp_path / 'other.pt'}")


# ---- both


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pickscore", r"hf download yuvalkirstain/PickScore_v1 --local-dir DIR.*model=DIR"),
        ("pickscore?model={here}", r"hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K .*processor=DIR"),
        ("pickscore?chunk_size=0", "chunk_size must be an integer of at least 1"),
        (
            "hpsv2",
            r"hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir DIR.*checkpoint=DIR/HPS_v2.1_compressed.pt",
        ),
        ("hpsv2?checkpoint=none.pt", "checkpoint=none.pt is not a file. Download one, .*huggingface.co/xswu/HPSv2"),
        ("hpsv2?device=quantum", "unknown device 'quantum'"),
    ],
)
def test_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch, pickscore: Path, spec: str, message: str) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    spec = spec.format(here=pickscore)
    check_reward(spec)
    with pytest.raises(ValueError, match=message):
        resolve_reward(spec)
