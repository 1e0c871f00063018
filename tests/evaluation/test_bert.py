"""BERTScore with a tiny model from a folder: the library's figure, rescaled or not, and nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.evaluation.scoring.bert import BertScore
from echovlm_edge.runtime.evaluation.scoring.metric import Case

for module in ("bert_score", "transformers"):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed", allow_module_level=True)

REFERENCE, ANSWER = "左侧乳腺结节", "左侧乳腺囊肿"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two random layers whose words are Chinese characters, as Hugging Face stores it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    characters = sorted(set(REFERENCE + ANSWER))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of what unrelated texts get, a line for each layer and the embedding."""
    file = tmp_path_factory.mktemp("baseline") / "tiny.tsv"
    file.write_text("LAYER,P,R,F\n0,0.1,0.1,0.1\n1,0.2,0.2,0.2\n2,0.5,0.5,0.5\n")
    return file


def scored(scorer: BertScore, answer: str, task: RowTask = RowTask.REPORT) -> dict[str, tuple[float, ...]]:
    return dict(scorer.score(Case(task, "zh", "?", REFERENCE, answer)))


def test_the_figure_is_that_of_the_models_last_layer(model: Path) -> None:
    from bert_score import BERTScorer

    scorer = BertScore.open(model)
    _, _, expected = BERTScorer(model_type=str(model), num_layers=2, device="cpu", use_fast_tokenizer=True).score(
        [ANSWER], [REFERENCE]
    )
    assert scored(scorer, ANSWER)["bertscore"] == (pytest.approx(float(expected[0])), 1.0)
    assert scored(scorer, REFERENCE)["bertscore"][0] == pytest.approx(1, abs=1e-5)
    assert scored(scorer, " ") == {"bertscore": (0.0, 1.0)} and scored(scorer, "True", RowTask.JUDGE) == {}
    (metric,) = scorer.metrics
    assert metric.title == "BERTScore, not rescaled"


def test_a_folder_that_states_no_limit_has_the_models(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "older"))
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    del stated["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    long = ANSWER * 200  # more tokens than the model has positions
    assert scored(BertScore.open(folder), long) == scored(BertScore.open(model), long)


def test_a_baseline_rescales_it(model: Path, baseline: Path) -> None:
    plain, rescaled = BertScore.open(model), BertScore.open(model, baseline)
    before, after = (scored(one, ANSWER)["bertscore"][0] for one in (plain, rescaled))
    assert after == pytest.approx((before - 0.5) / (1 - 0.5), abs=1e-5)
    (metric,) = rescaled.metrics
    assert metric.title == "BERTScore, rescaled" and "tiny.tsv" in metric.note


def test_what_cannot_be_used_is_one_sentence(model: Path, baseline: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no model"):
        BertScore.open(tmp_path)
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(InvalidInput, match="cannot be used"):  # neither weights nor a tokenizer, and none is downloaded
        BertScore.open(tmp_path)
    (tmp_path / "short.tsv").write_text("LAYER,P,R,F\n0,0.1,0.1,0.1\n")
    with pytest.raises(InvalidInput, match="cannot be used"):
        BertScore.open(model, tmp_path / "short.tsv")
