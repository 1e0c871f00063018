"""Characters and words of another language than the one that was asked for, and characters of none."""

from __future__ import annotations

import re

from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.serving.review.reviewed import HAN, Reviewed

# Replacement characters, control characters, private use; UTF-8 read as Latin-1; UTF-8 or padding read as GBK.
_GARBLED = re.compile("[\ufffd\ue000-\uf8ff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[ÃÂ][\x80-\xbf]|â€|锟斤拷|烫烫|屯屯")
# Letters that neither language has: Cyrillic to Thai, Korean, Japanese, and so on. Latin and Greek letters are in both (α, µ, é).
_FOREIGN = re.compile(
    "[\u0400-\u1dff\u2c00-\u2dff\u3041-\u30fa\u30fc-\u312f\u3130-\u318f\ua000-\ud7ff\ufb1d-\ufdff\ufe70-\ufefe]"
)
_LATIN_RUN = re.compile(
    r"(?:(?<![A-Za-z])[A-Za-z]{2,}[\s,.;:()-]+){5,}[A-Za-z]{2,}"
)  # six words: abbreviations are no sentence
FEW_HAN = 2  # that an English text may quote


def has_other_characters(reviewed: Reviewed) -> str | None:
    """Check a text's characters. Chinese reports have Latin abbreviations and categories in them; English ones have no Chinese."""
    text = reviewed.text
    if _GARBLED.search(text):
        return reviewed.say("The text contains garbled characters.", "文本含有乱码字符。")
    if _FOREIGN.search(text):
        return reviewed.say(
            "The text contains letters of another language than English or Chinese.", "文本含有中英文以外的文字。"
        )
    language = reviewed.asked.text_language
    if language is Language.EN and len(HAN.findall(text)) > FEW_HAN:
        return reviewed.say("English was asked for, and the text contains Chinese.", "要求英文，文本含有中文。")
    if language is Language.ZH and (_LATIN_RUN.search(text) or _is_latin(text)):
        return reviewed.say("Chinese was asked for, and the text contains English.", "要求中文，文本含有英文语句。")
    return None


def _is_latin(text: str) -> bool:
    """Check for a short text without a Chinese character that is more than an abbreviation or a number: "The left side."."""
    return not HAN.search(text) and len(re.findall("[A-Za-z]{2,}", text)) >= 3
