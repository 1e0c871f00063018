"""BERTScore with a model from a folder on this machine; nothing is downloaded.

The authors use bert-base-chinese, its layer 12, rescaled with the baseline that the package bert-score has for it. Rescaling needs
such a baseline, a table of the scores that unrelated texts get, made for that very model and layer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.evaluation.scoring.metric import Case, Metric, Statistics, mean_of

AUTHORS_MODEL = {
    "model_type": "bert",
    "vocab_size": 21128,
    "hidden_size": 768,
    "num_hidden_layers": 12,
}  # bert-base-chinese
AUTHORS_BASELINE = "rescale_baseline/zh/bert-base-chinese.tsv"  # in the package bert-score


@dataclass(frozen=True)
class BertScore:
    """BERTScore's F1 by a model's last layer.

    Attributes:
        scorer: of the package bert-score.
        baseline: the table that scores are rescaled with; None: they are not.
    """

    scorer: Any = field(repr=False)
    baseline: Path | None

    @classmethod
    def open(cls, model: Path, baseline: Path | None = None) -> BertScore:
        """Load the model of a folder.

        Args:
            model: a folder with config.json, the weights and the tokenizer, as Hugging Face stores them.
            baseline: for rescaling; by default the package's own for bert-base-chinese, and none for other models.

        Raises:
            NotPossibleHere: the package is not installed.
            InvalidInput: the folder holds no such model, or the file is no baseline of its layers.
        """
        if find_spec("bert_score") is None:
            raise NotPossibleHere(f"--bertscore needs bert-score, which is not installed: {install_hint('bertscore')}.")
        config = _config(model)
        if baseline is None and {name: config.get(name) for name in AUTHORS_MODEL} == AUTHORS_MODEL:
            baseline = _package_baseline()
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
        from bert_score import BERTScorer

        try:
            scorer = BERTScorer(
                model_type=str(model),
                num_layers=int(config["num_hidden_layers"]),
                lang="zh" if baseline else None,
                rescale_with_baseline=baseline is not None,
                baseline_path=str(baseline) if baseline else None,
                device="cpu",
                use_fast_tokenizer=True,
            )
            tokenizer = scorer._tokenizer  # older folders do not state its limit, and the package cuts texts at it
            tokenizer.model_max_length = min(tokenizer.model_max_length, int(config["max_position_embeddings"]))
            if baseline:
                scorer.baseline_vals  # noqa: B018 # reads the file
        except Exception as error:  # of torch, transformers and pandas; their sentences quote paths at length
            raise InvalidInput(
                f"--bertscore {model} cannot be used ({type(error).__name__}): give the folder of a BERT model with its tokenizer, and "
                "a baseline that has its layers."
            ) from None
        return cls(scorer, baseline)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The one metric."""
        rescaled = f"rescaled with {self.baseline.name}" if self.baseline else "not rescaled"
        note = f"bert-score, F1 of the model's last layer, lower case, {rescaled}, mean over rows"
        return (
            Metric(
                "bertscore", f"BERTScore, {rescaled.partition(' with')[0]}", "BERTScore", "share", note, headline=True
            ),
        )

    def score(self, case: Case) -> Mapping[str, Statistics]:
        """Score an answer; an empty one is 0."""
        if case.task.closed:
            return {}
        if not case.answer.strip():
            return {"bertscore": mean_of(0.0)}
        _, _, f1 = self.scorer.score([case.answer.lower()], [case.reference.lower()])
        return {"bertscore": mean_of(float(f1[0]))}


def _config(model: Path) -> dict[str, Any]:
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        int(config["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidInput(
            f"--bertscore {model} holds no model (config.json with num_hidden_layers): give the folder of bert-base-chinese, for example."
        ) from None
    return dict(config)


def _package_baseline() -> Path | None:
    import bert_score

    file = Path(bert_score.__file__).parent / AUTHORS_BASELINE
    return file if file.is_file() else None
