"""BERTScore's recall (Zhang et al. 2020): how much of a reference text a candidate text says, token by token."""

import csv
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.chunks import in_chunks
from diffusion_gym.errors import first_run
from diffusion_gym.libraries import no_progress_bars
from diffusion_gym.rewards.models.weights import not_found
from diffusion_gym_torchvision import repair_torchvision

#: Layers that bert_score's authors tuned on WMT16, by the last part of the model's name. Others use what their
#: configuration says under ``bertscore_layer``, or else their last layer.
LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "deberta-base-mnli": 9,
    "deberta-large-mnli": 18,
    "deberta-xlarge-mnli": 40,
    "distilbert-base-uncased": 5,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
}

NO_ENCODER = (
    "bert={} is not an encoder that BERTScore supports; expected one like BERT, RoBERTa, DeBERTa or DistilBERT."
)


@cache
def load_bertscore(
    bert: str, layer: int | None, baseline: str | None, chunk_size: int, device: str | None
) -> "BERTScore":
    """Return the scorer, loaded once per process; arguments as :class:`BERTScore`'s."""
    return BERTScore(bert, layer, baseline, chunk_size, device)


class BERTScore:
    """Recall over a transformers encoder, with the conventions of the reference package bert_score, without IDF.

    ``R = mean_i max_j cos(reference_i, candidate_j)`` over the reference's tokens i, special tokens left out, and all
    of the candidate's tokens j, special ones too. A text without tokens scores 0. Texts are encoded in groups of one
    length, without padding, and multiplied pair by pair, so that a score depends on its own two texts alone. (The
    reference pads, and lets padding count as a cosine of 0, which shows where all cosines of a token are negative.)
    """

    def __init__(
        self,
        bert: str,
        layer: int | None = None,
        baseline: str | None = None,
        chunk_size: int = 16,
        device: str | None = None,
    ) -> None:
        """Load the encoder up to the layer.

        Args:
            bert: folder or hub id of a transformers encoder.
            layer: whose outputs are compared, 1 is the first; None takes the usual one, see :data:`LAYERS`.
            baseline: b of the rescaling ``(R - b) / (1 - b)``: a number, or one of bert_score's rescale_baseline files
                (LAYER,P,R,F); None leaves R as it is.
            chunk_size: texts at a time.
            device: where the encoder runs; None follows the ``device`` of the call.

        Raises:
            ValueError: missing weights, a model of another kind, or an invalid layer or baseline.
        """
        repair_torchvision()
        from transformers import AutoModel

        config, self._tokenizer = _load_tokenizer(bert)
        layers = getattr(config, "num_hidden_layers", None)
        if layers is None:
            raise ValueError(NO_ENCODER.format(bert))
        usual = LAYERS.get(Path(bert).name, getattr(config, "bertscore_layer", layers))
        self.layer = usual if layer is None else layer
        if not 1 <= self.layer <= layers:
            raise ValueError(f"layer must lie in 1 to {layers}, the layers of bert={bert}; got {self.layer}.")
        self.baseline = 0.0 if baseline is None else _read_baseline(baseline, self.layer)
        try:
            with no_progress_bars():
                self._model = AutoModel.from_pretrained(bert, dtype=torch.float32).eval().requires_grad_(False)
        except Exception as error:
            not_found("bert", bert, error)
        _drop_layers_above(self._model, self.layer)
        self._limit = min(self._tokenizer.model_max_length, _positions(self._model, config))
        self._chunk_size, self._device = chunk_size, device
        if device is not None:
            self._model.to(device)
        with first_run(f"bert={bert}", "a first small input", "an encoder like BERT, RoBERTa, DeBERTa or DistilBERT"):
            if not math.isfinite(float(self(["a cat"], ["a dog"], self._model.device))):
                raise ValueError("its score is not finite")

    def __deepcopy__(self, memo: dict[int, Any]) -> "BERTScore":
        return self

    @torch.no_grad()
    def __call__(
        self, candidates: Sequence[str], references: Sequence[str], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return each pair's recall.

        Args:
            candidates: n texts.
            references: n texts.
            device: where to compute, if the encoder has no device of its own.

        Returns:
            (n,), float32, on the CPU.
        """
        if len(candidates) != len(references):
            raise ValueError(f"expected a reference for each of {len(candidates)} candidates, got {len(references)}.")
        place = torch.device(self._device or device)
        self._model.to(place)
        tokens = {text: self._tokenize(text) for text in dict.fromkeys([*candidates, *references])}
        vectors = self._encode(tokens, place)
        recalls = [
            self._recall(vectors[candidate], tokens[candidate], vectors[reference], tokens[reference])
            for candidate, reference in zip(candidates, references, strict=True)
        ]
        return (torch.stack(recalls).cpu() - self.baseline) / (1 - self.baseline)

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenizer(text.strip(), truncation=True, max_length=self._limit)["input_ids"]

    def _encode(self, tokens: dict[str, list[int]], device: torch.device) -> dict[str, Tensor]:
        """Return each text's token vectors (L, D) of length 1."""

        def forward(ids: Tensor) -> Tensor:
            states = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            return torch.nn.functional.normalize(states, dim=-1)

        vectors: dict[str, Tensor] = {}
        for length in sorted({len(ids) for ids in tokens.values()}):
            texts = [text for text, ids in tokens.items() if len(ids) == length]
            rows = torch.tensor([tokens[text] for text in texts], device=device)
            vectors.update(zip(texts, in_chunks(forward, rows, self._chunk_size), strict=True))
        return vectors

    def _recall(
        self, candidate: Tensor, candidate_ids: list[int], reference: Tensor, reference_ids: list[int]
    ) -> Tensor:
        said, asked = self._counted(candidate_ids), self._counted(reference_ids)
        if not any(said) or not any(asked):
            return torch.zeros((), device=reference.device)
        best = (reference @ candidate.T).amax(1)
        return best[torch.tensor(asked, device=best.device)].mean()

    def _counted(self, ids: list[int]) -> list[bool]:
        special = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
        return [token not in special for token in ids]


def _load_tokenizer(bert: str) -> tuple[Any, Any]:
    """Return an encoder's configuration and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(bert)
        # Byte-pair tokenizers tell a word at the start from one after a space; bert_score always gives a space.
        space = {"add_prefix_space": True} if config.model_type in ("roberta", "gpt2") else {}
        return config, AutoTokenizer.from_pretrained(bert, **space)
    except Exception as error:  # transformers and the hub client raise many unrelated types
        not_found("bert", bert, error)


def _positions(model: Any, config: Any) -> int:
    """Return the longest text in tokens; RoBERTa and its like count positions from the one after the padding's."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return int(getattr(config, "max_position_embeddings", 512)) - (0 if padding is None else padding + 1)


def _drop_layers_above(model: Any, layer: int) -> None:
    """Cut an encoder after its ``layer``-th layer, as bert_score does, so that the rest costs nothing."""
    for name in ("encoder", "transformer"):
        stack = getattr(model, name, None)
        if stack is not None and isinstance(getattr(stack, "layer", None), torch.nn.ModuleList):
            stack.layer = stack.layer[:layer]
            return
    raise ValueError(NO_ENCODER.format(type(model).__name__))


def _read_baseline(baseline: str, layer: int) -> float:
    try:
        value = float(baseline)
    except ValueError:
        value = _baseline_of_layer(Path(baseline), layer)
    if not value < 1:
        raise ValueError(f"baseline must be less than 1, got {baseline}.")
    return value


def _baseline_of_layer(path: Path, layer: int) -> float:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row["LAYER"]: float(row["R"]) for row in csv.DictReader(file)}
        return rows[str(layer)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"baseline={path} gives no recall of layer {layer} ({type(error).__name__}: {error}); expected a number, "
            "or a file with the columns LAYER,P,R,F from bert_score's rescale_baseline folder."
        ) from error
