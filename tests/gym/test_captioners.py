"""Vision-language models of the kinds that transformers has: which answer, as plain transformers do, and the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffusion_gym.rewards.models.captioner import TESTED, Captioner, to_pillow
from diffusion_gym_torchvision import repair_torchvision

repair_torchvision()

QUESTION = "what is in this image?"
WORDS = ["what", "is", "in", "this", "image", "?", "user", ":", "a", "cat", "dog", "fish", "riding", "playing", "chess"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SQUARE = {"height": 16, "width": 16}
GRID = [[16, 32], [32, 16]]
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def _tokenizer(**named: str) -> Any:
    """Return a tokenizer of words whose further special tokens have these names."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, extra_special_tokens=named, **SPECIAL)


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 256, "initializer_range": 1.0, **more}


def _chat(image: str) -> str:
    return TEMPLATE.replace("IMAGE", image)


def _llava_next() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = _tokenizer(image_token="<image>")
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8, initializer_factor=20.0),
        text_config=t.LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=GRID,
        vision_feature_layer=-1,
    )
    processor = t.LlavaNextProcessor(
        t.LlavaNextImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=GRID),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat("<image>"),
    )
    return t.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**SIZES, image_size=16, patch_size=8),
        text_config=t.Qwen2Config(**_text(tokenizer, num_key_value_heads=2)),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=GRID,
        vision_feature_layer=-1,
    )
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=GRID),
        tokenizer,
        t.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=_chat("<image>"),
    )
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def _qwen(version: str, **vision: Any) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = _tokenizer(
        image_token="<|image_pad|>", video_token="<|video_pad|>", start="<|vision_start|>", end="<|vision_end|>"
    )
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = getattr(t, f"Qwen{version}Config")(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            **vision,
        },
        text_config=_text(tokenizer, num_key_value_heads=2, head_dim=8, rope_parameters=rope, eos_token_id=3),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.start_id,
        vision_end_token_id=tokenizer.end_id,
    )
    video = t.Qwen3VLVideoProcessor if version == "3VL" else t.Qwen2VLVideoProcessor
    processor = getattr(t, f"Qwen{version}Processor")(
        t.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=64 * 64),
        tokenizer,
        video(patch_size=8, merge_size=2),
        chat_template=_chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return getattr(t, f"Qwen{version}ForConditionalGeneration")(config), processor


def _idefics3() -> tuple[Any, Any]:
    import transformers as t

    cells = {f"cell_{r}{c}": f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)}
    around = {"fake": "<fake_token_around_image>", "whole": "<global-img>", "end": "<end_of_utterance>"}
    tokenizer = _tokenizer(image_token="<image>", **around, **cells)
    config = t.Idefics3Config(
        vision_config={**SIZES, "image_size": 16, "patch_size": 4},
        text_config=t.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    processor = t.Idefics3Processor(
        t.Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        tokenizer,
        image_seq_len=4,
        chat_template=_chat("<image>"),
    )
    return t.Idefics3ForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    import transformers as t

    around = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    tokenizer = _tokenizer(context_image_token="<IMG_CONTEXT>", **around)
    config = t.InternVLConfig(
        vision_config={**SIZES, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config={**_text(tokenizer, num_key_value_heads=2), "model_type": "qwen2"},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = t.InternVLProcessor(
        t.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=False),
        tokenizer,
        t.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=_chat("<IMG_CONTEXT>"),
    )
    return t.InternVLForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = _tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    config = t.Gemma3Config(
        vision_config={**SIZES, "image_size": 16, "patch_size": 4, "vision_use_head": False},
        text_config=_text(tokenizer, head_dim=8, num_key_value_heads=1, eos_token_id=3),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = t.Gemma3Processor(
        t.Gemma3ImageProcessor(size=SQUARE), tokenizer, image_seq_length=4, chat_template=_chat("<start_of_image>")
    )
    return t.Gemma3ForConditionalGeneration(config), processor


def _mllama() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = _tokenizer(image_token="<|image|>")
    vision = {"num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2, "image_size": 16, "patch_size": 8}
    tiles = {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    vision |= {"hidden_size": 16, "intermediate_size": 32, "vision_output_dim": 32, "intermediate_layers_indices": [1]}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = t.MllamaConfig(
        vision_config={**vision, **tiles},
        text_config=_text(tokenizer, num_key_value_heads=2, cross_attention_layers=[1], rope_parameters=rope, **ends),
        image_token_index=tokenizer.image_token_id,
    )
    processor = t.MllamaProcessor(
        t.MllamaImageProcessor(size=SQUARE, max_image_tiles=2), tokenizer, chat_template=_chat("<|image|>")
    )
    return t.MllamaForConditionalGeneration(config), processor


def _blip() -> tuple[Any, Any]:
    import transformers as t

    tokenizer = _tokenizer()
    ends = {"bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    config = t.BlipConfig(
        text_config={**_text(tokenizer), **ends, "encoder_hidden_size": 16},
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
    )
    return t.BlipForConditionalGeneration(config), t.BlipProcessor(t.BlipImageProcessor(size=SQUARE), tokenizer)


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "mllama": _mllama,
    "qwen2_vl": lambda: _qwen("2VL", embed_dim=16, mlp_ratio=2),
    "qwen2_5_vl": lambda: _qwen(
        "2_5_VL", out_hidden_size=16, intermediate_size=32, window_size=32, fullatt_block_indexes=[1]
    ),
    "qwen3_vl": lambda: _qwen(
        "3VL", out_hidden_size=16, intermediate_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0]
    ),
}


def _save(kind: Callable[[], tuple[Any, Any]], folder: Path) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for part in kind():
            part.save_pretrained(folder)
    return str(folder)


def test_the_documented_kinds_are_those_that_are_tested() -> None:
    """LLaVA itself is in test_vlm_alignment.py."""
    assert sorted([*KINDS, "llava"]) == sorted(TESTED)
    page = Path(__file__).parents[2] / "docs" / "rewards" / "vlm_alignment.md"
    assert all(f"`{kind}`" in page.read_text(encoding="utf-8") for kind in TESTED)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_answers_are_those_of_plain_transformers(kind: str, tmp_path: Path) -> None:
    """One image at a time, in the way of transformers' own documentation, against padded chunks of two."""
    captioner = Captioner(_save(KINDS[kind], tmp_path), chunk_size=2, max_new_tokens=5)
    model, processor = captioner._model, captioner._processor
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = []
    for picture in to_pillow(images):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=5)
        answer = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(answer[0].strip())
    assert captioner(images, QUESTION) == expected


def test_a_model_that_cannot_be_asked_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(a blip\) was loaded, but .*no chat template.*expected a vision-lang"):
        Captioner(_save(_blip, tmp_path))


def test_a_model_that_does_not_run_is_refused_when_it_is_loaded(
    tiny_reward_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where other inputs are needed, or weights and processor disagree on the image's tokens."""
    from transformers import LlavaForConditionalGeneration

    def forward(self: Any, pixel_values: Any, region: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", forward)
    with pytest.raises(ValueError, match=r"\(a llava\) was loaded, but a first small input fails \("):
        Captioner(str(tiny_reward_models / "captioner"))


def test_the_first_input_is_one_small_picture(tiny_reward_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answer = Captioner._answer

    def count(self: Captioner, pictures: list[Image.Image], *rest: Any) -> list[str]:
        asked.append(len(pictures))
        return answer(self, pictures, *rest)

    monkeypatch.setattr(Captioner, "_answer", count)
    Captioner(str(tiny_reward_models / "captioner"), chunk_size=8)
    assert asked == [1]
