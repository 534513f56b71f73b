"""What every test shares: one torch thread, the repair of torchvision, and a tiny genuine Stable Diffusion pipeline."""

import base64
import io
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Before NumPy and torch, and for the processes that tests start: one thread, or all workers' threads would share the
# cores; and where a test wants two, they sleep while they wait, for on a busy machine spinning takes ten times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# --device auto would take a GPU, on which the tests' sums come out otherwise; name the GPUs to test on them.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import pytest
import torch
from PIL import Image

from algorithms import DiffusionAlgorithm
from algorithms.rollouts import collect
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym_torchvision import repair_torchvision

repair_torchvision()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bit equality is promised for one number of threads; one is also quickest on networks this small."""
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist hand out files in their order here, not the one with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a browser or the built site, or takes minutes, unless ``-m`` names it; long files first.

    Any other ``-m`` means what it says. Files whose tests are marked slow begin, so that none of them is what all
    workers but one wait for at the end.
    """
    apart = [marker for marker in ("browser", "docs", "long") if marker not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in apart)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def disturb() -> Callable[[DiffusionAlgorithm[Any]], None]:
    """``disturb(algorithm)``: start adapters at a nonzero update, so that one left out somewhere would show."""

    def change(algorithm: DiffusionAlgorithm[Any], by: float = 0.02) -> None:
        source = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in algorithm.policy.trainable_parameters().values():
                value.add_(by * torch.randn(value.shape, generator=source))

    return change


@pytest.fixture(scope="session")
def largest_log_ratios(disturb: Callable) -> Callable[..., dict[tuple[int, int], float]]:
    """``largest_log_ratios(ddpo)``: largest |joint log-ratio| of a first update, by chunk size and threads.

    Four images more than a chunk holds, so that the last chunk is smaller: 16 and 4, or 3, 3 and 1.
    """

    def measure(
        algorithm: DiffusionAlgorithm[Any], cases: Sequence[tuple[int, int]] = ((16, 1), (3, 1))
    ) -> dict[tuple[int, int], float]:
        disturb(algorithm)
        mdp, found, threads = algorithm.mdp, {}, torch.get_num_threads()
        try:
            for size, number in cases:
                env = DenoiseVectorEnv.sharing(mdp, size + 4)
                prompts = [mdp.prompts[i % len(mdp.prompts)] for i in range(size + 4)]
                algorithm.policy.chunk_size = size
                torch.set_num_threads(number)
                metrics = algorithm.update(collect(env, algorithm.policy, prompts, seed=size))
                found[size, number] = metrics["train/log_ratio_abs_max"]
        finally:
            torch.set_num_threads(threads)
        return found

    return measure


TOKENS = 16
"""Tokens of a prompt; unknown words are spelled, so longer prompts are cut."""


def _write_tokenizer(folder: Path) -> None:
    """Write a CLIP byte-pair vocabulary that spells everything in bytes and has a few words of one token."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("a", "n"), ("an", "t</w>")]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def _build_pipeline(folder: Path, prediction_type: str) -> None:
    """Save a StableDiffusionPipeline with seeded random weights: latents 4 x 8 x 8, pictures 16 x 16."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    _write_tokenizer(folder / "vocabulary")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=(
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ),  # attention in all but the inmost, as the real ones
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            scaling_factor=0.5,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=32,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # transformers initialises embeddings at 0.02, which would make all prompts nearly equal to the UNet.
        torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)
    # The scheduler configuration of Stable Diffusion 1.x.
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[Path], None]:
    """Return a function that writes a CLIP vocabulary into a folder, for ``CLIPTokenizer.from_pretrained``."""
    return _write_tokenizer


@pytest.fixture(scope="session", autouse=True)
def models_are_kept() -> Iterator[None]:
    """Keep what tests load until the session ends: each tiny model is then loaded once, and not once a test."""
    from diffusion_gym import models

    ordinary, models._loaded = models._loaded, {}
    yield
    models._loaded = ordinary


@pytest.fixture(scope="session")
def build_tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function from prediction type to the folder of a tiny pipeline; each is built once a session."""
    built: dict[str, str] = {}

    def build(prediction_type: str = "epsilon") -> str:
        if prediction_type not in built:
            folder = tmp_path_factory.mktemp(f"tiny-sd-{prediction_type}")
            _build_pipeline(folder, prediction_type)
            built[prediction_type] = str(folder)
        return built[prediction_type]

    return build


@pytest.fixture(scope="session")
def tiny_sd(build_tiny_sd: Callable[[str], str]) -> str:
    """Return the folder of a tiny StableDiffusionPipeline (epsilon), for ``model=``."""
    return build_tiny_sd("epsilon")


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def tiny_sd_each(request: pytest.FixtureRequest, build_tiny_sd: Callable[[str], str]) -> str:
    """Return the folder of a tiny pipeline for each prediction type."""
    return build_tiny_sd(request.param)


EXACT: dict[str, Any] = {
    "model": "exact-mixture",
    "reward": "exact-linear",
    "prompts": ["north", "east", "south", "west"],
    "num_inference_steps": 3,
}
"""Arguments of ``make`` for an environment that is ready in milliseconds and rewards points in the plane."""


@pytest.fixture
def exact() -> dict[str, Any]:
    """Return arguments of ``make``: the exact mixture, four prompts, three steps."""
    return dict(EXACT)


@pytest.fixture(params=["exact", "exact-flow", "tiny-sd"])
def each_model(request: pytest.FixtureRequest, tiny_sd: str) -> dict[str, Any]:
    """Return arguments of ``make`` for the exact mixture, the same as a flow, and for a real diffusers pipeline."""
    if request.param == "exact":
        return dict(EXACT)
    if request.param == "exact-flow":
        return {**EXACT, "model": "exact-flow-mixture"}
    return {
        "model": tiny_sd,
        "reward": "compressibility",
        "prompts": ["cat", "dog", "ant", "fish"],
        "num_inference_steps": 3,
    }


def _build_clip(folder: Path) -> None:
    """Save an open_clip model for 16 x 16 pictures, embeddings of size 12, under open_clip's own file names."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import CLIPTokenizer

    _write_tokenizer(folder / "vocabulary")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary", model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    vision = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": TOKENS, "vocab_size": len(tokenizer), "width": 16, "heads": 2, "layers": 2}
    model = open_clip.CLIP(12, vision, text)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": {**text, "hf_tokenizer_name": "any"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


def _head_tensors(sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return random tensors under the names of LAION's head; its sizes are 768, 1024, 128, 64, 16, 1."""
    layers = zip((0, 2, 4, 6, 7), sizes[:-1], sizes[1:], strict=True)
    shapes = {f"layers.{k}.{kind}": (n, m) if kind == "weight" else (n,) for k, m, n in layers for kind in KINDS}
    return {name: torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}


KINDS = ("weight", "bias")
WORDS = ("the", "image", "contains", "a", "an", "is", "in", "what", "user", ":")
WORDS += ("cat", "dog", "ant", "fish", "horse", "riding", "bike", "washing", "dishes", "playing", "chess")


def word_tokenizer(special: dict[str, str], template: str) -> Any:
    """Return a fast tokenizer of one token a word, with the special tokens first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    around = [(token, vocabulary[token]) for token in template.split() if token in vocabulary]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)


def _build_bert(folder: Path) -> None:
    """Save a BertModel of three layers and its tokenizer."""
    from transformers import BertConfig, BertModel

    roles = ("pad", "unk", "cls", "sep", "mask")
    tokenizer = word_tokenizer({f"{role}_token": f"[{role.upper()}]" for role in roles}, "[CLS] $A [SEP]")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,  # at the usual 0.02 all words look alike
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _build_captioner(folder: Path) -> None:
    """Save a LLaVA for 16 x 16 pictures whose answers are random words that depend on the picture."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = word_tokenizer(special, "<s> $A")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=8, initializer_factor=20.0)
    text = LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=1.0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=4,
        initializer_range=1.0,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}USER: {% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        ),
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_reward_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like the embedded reward models': clip, aesthetic, captioner, bert; seeded random weights."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-reward-models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _build_clip(folder / "clip")
        _build_bert(folder / "bert")
        _build_captioner(folder / "captioner")
        (folder / "aesthetic").mkdir()
        save_file(_head_tensors((12, 16, 8, 8, 4, 1)), folder / "aesthetic" / "head.safetensors")
    return folder


@pytest.fixture
def head_tensors() -> Callable[[tuple[int, ...]], dict[str, torch.Tensor]]:
    """Return a function from sizes to random tensors under the names of LAION's head."""
    return _head_tensors


@pytest.fixture
def tiny_rewards(tiny_reward_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let ``aesthetic``, ``clip_score`` and ``vlm_alignment`` find the tiny models where they look for the embedded."""
    from diffusion_gym.rewards.models import weights

    monkeypatch.setattr(weights, "EMBEDDED", tiny_reward_models)
    return tiny_reward_models


class ChatServer:
    """An OpenAI-compatible server on loopback that describes a picture by its brightness, and can be told to fail.

    Attributes:
        requests: JSON bodies of the chat completions, in the order of arrival.
        pictures: what they showed, (H, W, 3), uint8.
        headers: their headers.
        most_at_once: the largest number of requests under way together.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.pictures: list[np.ndarray] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.behave: Callable[[int, bytes], str] = lambda attempt, picture: "answer"
        """From how often this picture was sent before, and its bytes, to what to do: "answer", "cut" (close without a
        word), "garbage", "silence:SECONDS" (then answer), or "STATUS" or "STATUS:RETRY_AFTER"."""
        self._attempts: Counter[bytes] = Counter()
        self._lock, self._at_once = threading.Lock(), 0
        self._server = _QuietServer(("127.0.0.1", port), self._handler())
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @staticmethod
    def describe(picture: np.ndarray) -> str:
        """Return one of 25 descriptions."""
        level = int(picture.mean()) // 11
        return f"a {WORDS[10 + level % 10]} {WORDS[10 + level // 10]}"

    def stop(self) -> None:
        """Close the port; connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - inside, self is the handler
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                url = body["messages"][0]["content"][0]["image_url"]["url"]
                data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
                picture = np.array(Image.open(io.BytesIO(data)))
                with server._lock:
                    server.requests.append(body)
                    server.pictures.append(picture)
                    server.headers.append(dict(self.headers))
                    attempt = server._attempts[data]
                    server._attempts[data] += 1
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                word, _, number = server.behave(attempt, data).partition(":")
                if word == "silence":
                    time.sleep(float(number))
                with server._lock:  # before the answer: its reader may send the next request before this thread goes on
                    server._at_once -= 1
                self._answer(word, number, picture)

            def _answer(self, word: str, number: str, picture: np.ndarray) -> None:
                if word == "cut":
                    return
                status = int(word) if word.isdigit() else 200
                message = {"role": "assistant", "content": f" {server.describe(picture)}\n"}
                answer = {"choices": [{"message": message}]} if status == 200 else {"error": "the test says no"}
                text = b"<html>" if word == "garbage" else json.dumps(answer).encode()
                self.send_response(status if self.path == "/v1/chat/completions" else 404)
                if number and word.isdigit():
                    self.send_header("Retry-After", number)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        return Handler


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *arguments: object) -> None:
        """Say nothing of clients that went away."""


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ChatServer]]:
    """Return a function that starts a :class:`ChatServer`; all are stopped after the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started: list[ChatServer] = []

    def start(port: int = 0) -> ChatServer:
        started.append(ChatServer(port))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def comparison(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished comparison: two algorithms, two seeds, three evaluations of twenty pictures. To be copied."""
    from algorithms import ALGORITHMS, EvaluationConfig
    from algorithms.config.base import override
    from benchmarks.analysis.results import Results, write_results
    from benchmarks.provenance import provenance
    from benchmarks.runs.run import read_run, run
    from benchmarks.runs.spec import RunSpec, TaskConfig

    folder = tmp_path_factory.mktemp("comparison")
    unseen = tmp_path_factory.mktemp("prompts") / "unseen.txt"
    unseen.write_text("fox\nwolf\n", encoding="utf-8")
    task = TaskConfig(tiny_sd, "compressibility", "ten-animals", num_inference_steps=2, metrics=("diversity",))
    changes = {"images_per_iteration": 8, "num_envs": 8, "images_per_prompt": 8, "chunk_size": 8}
    changes |= {"updates_per_iteration": 1, "learning_rate": 0.03}
    changes |= {"evaluation": EvaluationConfig(images=20, held_out_prompts=str(unseen))}
    runs = []
    for seed in (0, 1):
        for name in ("ddpo-is", "rwr"):
            config = override(ALGORITHMS[name].config, seed=seed, **changes)
            run_folder = folder / "compressibility" / name / f"seed-{seed}"
            run(RunSpec(name, config, task, 16), run_folder)
            runs.append(read_run(run_folder, folder))
    write_results(Results(runs, provenance()), folder / "results.json")
    return folder
