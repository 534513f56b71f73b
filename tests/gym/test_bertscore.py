"""BERTScore: batched, one by one and by hand are the same number, whatever lengths stand side by side."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_gym.rewards.models.bertscore import BERTScore

CANDIDATES = [
    "a cat",
    "a dog is riding a bike in the image",
    "the image contains an ant playing chess and washing dishes",
    "fish",
    "a horse riding a horse riding a horse riding a horse",
    "dishes dishes dishes",
    "what is in the image : a cat playing chess",
    "an unheard word",
    "a fish washing dishes",
    "the cat is in the dishes",
]
REFERENCES = [
    "The image contains a cat washing dishes",
    "The image contains a dog riding a bike",
    "ant",
    "The image contains a fish in a horse in a cat in a dog",
    "a horse",
    "The image contains an ant playing chess",
    "cat",
    "The image contains a fish",
    "washing dishes a fish",
    "chess is what the user is playing",
]


@pytest.fixture(scope="module")
def encoders(tiny_reward_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folders of a BERT and of a DeBERTa, which is what the paper uses."""
    from transformers import AutoTokenizer, DebertaConfig, DebertaModel

    folder = tmp_path_factory.mktemp("encoders") / "deberta"
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_models / "bert")
    config = DebertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_biased_input=False,
        type_vocab_size=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DebertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"bert": str(tiny_reward_models / "bert"), "deberta": str(folder)}


def by_hand(tokenizer: Any, model: Any, layer: int, candidate: str, reference: str) -> float:
    """Zhang et al., equation for R, in double precision and loops over tokens, from the whole encoder's states."""

    def states(text: str) -> list[tuple[str, list[float]]]:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        return list(zip(tokenizer.convert_ids_to_tokens(ids), hidden.double().tolist(), strict=True))

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    said = [vector for _, vector in states(candidate)]
    wanted = [vector for token, vector in states(reference) if token not in ("[CLS]", "[SEP]")]
    return sum(max(cosine(word, other) for other in said) for word in wanted) / len(wanted)


@pytest.mark.parametrize(("encoder", "layer"), [("bert", 2), ("bert", 3), ("deberta", 3)])
def test_batched_equals_one_by_one_equals_by_hand(encoders: dict[str, str], encoder: str, layer: int) -> None:
    from transformers import AutoModel, AutoTokenizer

    score = BERTScore(encoders[encoder], layer=layer, chunk_size=4)
    together = score(CANDIDATES, REFERENCES)
    alone = torch.cat([score([c], [r]) for c, r in zip(CANDIDATES, REFERENCES, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    parts = AutoTokenizer.from_pretrained(encoders[encoder]), AutoModel.from_pretrained(encoders[encoder]).eval()
    expected = [by_hand(*parts, layer, c, r) for c, r in zip(CANDIDATES, REFERENCES, strict=True)]
    assert together.tolist() == pytest.approx(expected, abs=2e-6)
    order = list(range(len(CANDIDATES)))
    random.Random(0).shuffle(order)
    shuffled = score([CANDIDATES[k] for k in order], [REFERENCES[k] for k in order])
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-6)
    mispaired = score(CANDIDATES, REFERENCES[1:] + REFERENCES[:1])
    assert ((mispaired - together).abs() > 1e-3).sum() >= 8


def test_recall_asks_what_of_the_reference_is_said(encoders: dict[str, str]) -> None:
    score = BERTScore(encoders["bert"])
    assert score.layer == 3
    whole, part, nothing = score(["a cat washing dishes"] * 2 + [""], ["a cat washing dishes", "", "a cat"])
    assert whole == pytest.approx(1.0, abs=1e-6)
    assert part == nothing == 0.0


def test_baseline_rescales(encoders: dict[str, str], tmp_path: Path) -> None:
    """The file has bert_score's format; these are lines of its table for microsoft/deberta-xlarge-mnli."""
    table = tmp_path / "baseline.tsv"
    table.write_text("LAYER,P,R,F\n0,0.2493579,0.24956034,0.24190253\n2,0.317363,0.31756195,0.31315005\n")
    plain = BERTScore(encoders["bert"], layer=2)(CANDIDATES, REFERENCES)
    expected = (plain - 0.31756195) / (1 - 0.31756195)
    for baseline in (str(table), "0.31756195"):
        rescaled = BERTScore(encoders["bert"], layer=2, baseline=baseline)(CANDIDATES, REFERENCES)
        torch.testing.assert_close(rescaled, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 4}, "layer must lie in 1 to 3.*got 4"),
        ({"layer": 0}, "layer must lie in 1 to 3"),
        ({"baseline": "no-such.tsv"}, r"baseline=no-such.tsv gives no recall of layer 3 .*LAYER,P,R,F"),
        ({"baseline": "1.5"}, "baseline must be less than 1, got 1.5"),
    ],
)
def test_what_cannot_be_is_refused(encoders: dict[str, str], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BERTScore(encoders["bert"], **arguments)


def test_the_paper_layer_goes_with_the_model_name(encoders: dict[str, str], tmp_path: Path) -> None:
    """A folder called like the hub's repository counts as that model, whose tuned layer is the 40th of 48."""
    folder = tmp_path / "deberta-xlarge-mnli"
    folder.symlink_to(encoders["deberta"], target_is_directory=True)
    with pytest.raises(ValueError, match=r"layer must lie in 1 to 3.*got 40"):
        BERTScore(str(folder))


def test_a_model_of_another_kind_is_refused(tiny_reward_models: Path) -> None:
    with pytest.raises(ValueError, match="is not an encoder that BERTScore supports"):
        BERTScore(str(tiny_reward_models / "captioner"))


def test_a_model_that_needs_other_inputs_is_refused_when_it_is_loaded(encoders: dict[str, str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer, ViltConfig, ViltModel

    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ViltModel(ViltConfig(**sizes, vocab_size=len(tokenizer), image_size=16, patch_size=8)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"was loaded, but a first small input fails \(.*pixel_values.*like BERT"):
        BERTScore(str(tmp_path))


def test_long_texts_are_cut_where_positions_end(encoders: dict[str, str], tmp_path: Path) -> None:
    """RoBERTa counts positions from the one after the padding's, and its tokenizer may not say where they end."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    tokenizer = AutoTokenizer.from_pretrained(encoders["bert"], model_max_length=10**9)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=16, pad_token_id=1)
    RobertaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert BERTScore(str(tmp_path))(["a cat " * 20], ["a cat"]).isfinite().all()
