"""What a reward does stays its own: pictures and prompts are copies, and the process's settings are restored."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import BaseTorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from diffusion_gym.errors import warn_once
from diffusion_gym.rewards import REWARDS, Compressibility, RewardTerm, WeightedSum, evaluate_reward, resolve_reward
from diffusion_gym.rewards.guard import settings_kept

PROMPTS = ["b", "a", "c"]
_OPEN: list[Any] = []


@pytest.fixture(autouse=True)
def tell_again() -> Iterator[None]:
    """Let each test be the first to warn."""
    warn_once.cache_clear()
    yield
    _OPEN.clear()


def images() -> Tensor:
    return torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.float().mean((1, 2, 3))


def _enter(context: Any) -> None:
    context.__enter__()
    _OPEN.append(context)


def _matmul(precision: str) -> None:
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = precision
    else:
        torch.set_float32_matmul_precision("high")


class Forwarding(TorchDispatchMode):
    """What a profiler enters."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


#: What a warning calls it -> what changes it.
CHANGES: dict[str, Callable[[], object]] = {
    "gradients": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: _enter(torch.inference_mode()),
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "the default device": lambda: torch.set_default_device("meta"),
    "modes such as": lambda: _enter(torch.device("meta")),
    "modes such as 'with": lambda: _enter(BaseTorchFunctionMode()),
    r"modes such as 'with torch\.device": lambda: _enter(Forwarding()),
    "the number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "the seed of torch's generator": lambda: torch.manual_seed(12),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "the precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "the precision of float32": lambda: _matmul("tf32"),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "mkldnn.enabled": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "flash attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "autocast on cpu": lambda: _enter(torch.autocast("cpu", torch.bfloat16)),
    "NumPy's handling of errors": lambda: np.seterr(all="raise"),
    "the working directory": lambda: os.chdir("/"),
}


def _state() -> list[Any]:
    """Return the settings as the rest of a run meets them."""
    product = torch.ones(2, 2, requires_grad=True) @ torch.full((2, 2), 1 / 3)
    generator = torch.random.get_rng_state()
    return [
        product.dtype, product.device, product.requires_grad, product.is_inference(), torch.get_num_threads(),
        generator.tolist(), torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision(),
        torch.is_anomaly_enabled(), torch.backends.mkldnn.enabled,
        torch.backends.cudnn.benchmark, torch.backends.cuda.flash_sdp_enabled(),
        torch.autocast_increment_nesting(), torch.autocast_decrement_nesting(),
        np.geterr(), Path.cwd(), len(_get_current_function_mode_stack()), len(_get_current_dispatch_mode_stack()),
    ]  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_reward_changes_of_the_process_is_restored_and_said_once(what: str) -> None:
    def changing(images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = torch.tensor([1.0, 2.0, 3.0])
        CHANGES[what]()
        return scores

    before = _state()
    with pytest.warns(UserWarning, match=f"the reward 'changing' changed settings of the whole process: .*{what}"):
        assert evaluate_reward(changing, images(), PROMPTS).tolist() == [1.0, 2.0, 3.0]
    assert _state() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_reward(changing, images(), PROMPTS)
        evaluate_reward(brightness, images(), PROMPTS)
    assert _state() == before


def test_also_in_a_thread_and_after_an_error() -> None:
    def failing(images: Tensor, prompts: Sequence[str]) -> Tensor:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        raise KeyError("x")

    seen: list[Any] = []

    def run() -> None:
        with pytest.warns(UserWarning, match="gradients"), pytest.raises(RuntimeError, match="KeyError"):
            evaluate_reward(failing, images(), PROMPTS)
        seen.extend([torch.is_grad_enabled(), torch.get_default_dtype()])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True, torch.float32]


def test_drawing_numbers_is_no_change() -> None:
    """A reward may draw from torch's generator, and goes on drawing others."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = [evaluate_reward(lambda images, prompts: torch.rand(3), images(), PROMPTS) for _ in range(2)]
    assert not torch.equal(*draws)


def test_what_is_left_by_a_file_or_a_constructor_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float16)\n"
    (tmp_path / "off.py").write_text(f"{code}def score(images, prompts):\n    return images[:, 0, 0, 0]\n")
    with pytest.warns(UserWarning, match=r"the reward file '.*off\.py' changed .*gradients.*, the default dtype"):
        resolve_reward(f"{tmp_path / 'off.py'}:score")

    def construct() -> Callable[..., Tensor]:
        torch.set_grad_enabled(False)
        return brightness

    monkeypatch.setitem(REWARDS, "mine", construct)
    with pytest.warns(UserWarning, match="the reward 'mine' changed"):
        resolve_reward("mine")
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_settings_of_the_caller_stay() -> None:
    with torch.no_grad(), settings_kept("x"):
        assert not torch.is_grad_enabled()
    with torch.device("meta"), settings_kept("x"):
        assert torch.empty(1).is_meta


# ---- pictures, prompts and results


def blanking(images: Tensor, prompts: Sequence[str]) -> Tensor:
    assert isinstance(prompts, list)
    images[:, :] = 0
    prompts.sort()
    del prompts[0]
    return torch.zeros(len(images))


def test_a_reward_that_writes_into_pictures_and_prompts_has_its_own() -> None:
    pictures, prompts = images(), list(PROMPTS)
    alone = evaluate_reward(Compressibility(), images(), PROMPTS)
    together = WeightedSum([RewardTerm(blanking), RewardTerm(Compressibility())])
    assert torch.equal(together(pictures, prompts), alone)
    assert torch.equal(pictures, images())
    assert prompts == PROMPTS


def test_one_result_tensor_for_all_calls_is_copied() -> None:
    result = torch.zeros(3)

    def reusing(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return result.add_(1)

    first, second = (evaluate_reward(reusing, images(), PROMPTS) for _ in range(2))
    assert (first.tolist(), second.tolist()) == ([1, 1, 1], [2, 2, 2])


@pytest.mark.parametrize(
    "scores",
    [
        lambda x: torch.inference_mode()(lambda: x * 1.0)(),
        lambda x: (x * 1.0).requires_grad_(),
        lambda x: torch.nn.Parameter(x),
        lambda x: x.to_sparse(),
        lambda x: x.half(),
        lambda x: x.flip(0).numpy()[::-1],
        lambda x: x.numpy().astype(">f8"),
        lambda x: list(x),
    ],
)
def test_scores_of_any_kind_are_plain_tensors(scores: Callable[[Tensor], Any]) -> None:
    result = evaluate_reward(lambda images, prompts: scores(torch.tensor([1.0, 2.0, 3.0])), images(), PROMPTS)
    assert result.tolist() == [1.0, 2.0, 3.0]
    assert type(result) is Tensor
    assert (result.dtype, result.layout) == (torch.float32, torch.strided)
    assert not result.requires_grad
    assert not result.is_inference()
