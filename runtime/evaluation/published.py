"""The authors' published figures and generation settings, and what of them can be compared with an evaluation here."""

from __future__ import annotations

from collections.abc import Mapping

from echovlm_edge.runtime.contracts.request import Sampling

# EchoVLM, 11 B (arXiv 2509.14977), on a test set of its authors that is not published.
PAPER = {"bleu1": 53.87, "rouge1": 61.69, "rougel": 55.78, "meteor": 53.16, "bertscore": 71.38}
PAPER_TITLES = {
    "bleu1": "BLEU-1",
    "rouge1": "ROUGE-1",
    "rougel": "ROUGE-L",
    "meteor": "METEOR",
    "bertscore": "BERTScore",
}

# As run_eval.py of MedAI-UAIX/SonoVLM generates; it is greedy as far as the checkpoint's own generation config is.
AS_EVALUATED = "as-evaluated"
PRESETS: Mapping[str, Sampling] = {AS_EVALUATED: Sampling(max_new_tokens=4096, repetition_penalty=1.1)}

COMPARABLE = (
    "Comparable with the paper: the recipe (nltk BLEU with smoothing method 1, rouge_chinese and METEOR on lower-cased texts, each the "
    "mean over rows), and BERTScore with bert-base-chinese, its layer 12 and its baseline.",
    "Not comparable: the data (the paper's test set is not published), the tokens (the authors' normalize_word is not published: compare "
    "characters and jieba), the prompt's order (the authors' script puts the question before the pictures), and METEOR's "
    "synonyms for Latin words, where WordNet is not installed.",
)


def settings_note(sampling: Sampling) -> str:
    """Say whether texts were generated with the authors' settings."""
    wanted = PRESETS[AS_EVALUATED]
    if sampling == wanted:
        return "Texts were generated with the authors' settings (--preset as-evaluated)."
    return (
        f"Texts were not generated with the authors' settings, a repetition penalty of {wanted.repetition_penalty:g} and up to "
        f"{wanted.max_new_tokens} tokens: --preset as-evaluated."
    )
