"""Read a truth value or a letter from an answer in English or Chinese, by rules that are tried in order.

A truth value (`read_judgement`):

1. What restates the question says nothing and is left out: a sentence that ends in a question mark, and a pair of opposites, as
   "True or False" or "是否".
2. After "answer:", "答案是" and the like only what follows the last of them counts.
3. The first word of truth counts; negated words, as "不正确" and "not true", are words of their own.

A letter A to D (`read_choice`):

1. The letter after the last "answer:", "答案是", "选", "option" and the like.
2. The letter that the text begins with, unless it is the English article: "A nodule is seen" is no choice.
3. The only letter that stands alone in the text. Several in a row, as "A or B", are no choice in any of these places.
4. The only option of the question whose words the text contains.

Texts are compared in lower case after Unicode NFKC, so that full-width letters count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

TRUE, FALSE = "true", "false"
LETTERS = "ABCD"

_FALSE_WORDS = (
    r"\bnot\s+(?:entirely\s+|quite\s+)?(?:true|correct|right|accurate|consistent|match\w*)\b|\b(?:does|do|did)(?:n['’]t|\s+not)\s+(?:match|agree|correspond)\w*|"
    r"\bfalse\b|\bfalsch\b|\bincorrect\b|\binaccurate\b|\binconsistent\b|\bwrong\b|\bno\b|"
    r"不(?:太|完全)?(?:正确|准确|对|是|符|相符|符合|一致|匹配|吻合|成立|属实)|错误?|否|有误"
)
_TRUE_WORDS = (
    r"\btrue\b|\bture\b|\bcorrect\b|\bright\b|\baccurate\b|\bconsistent\b|\byes\b|"
    r"正确|准确|无误|相符|符合|一致|匹配|吻合|成立|属实|是的|是(?![否不])|对的|对(?![应不比照于着])"
)
_TRUTH = re.compile(rf"(?P<false>{_FALSE_WORDS})|(?P<true>{_TRUE_WORDS})")
_QUESTION = re.compile(r"[^。.!！?？\n]*[?？]")
_PAIRS = re.compile(
    r"\b(?:true|ture|yes|correct|right)\s*(?:or|/|和|或者?|还是)\s*(?:false|no|not|incorrect|wrong)\b|"
    r"(?:正确|对|是)\s*(?:还是|或者?|/|、)\s*(?:错误?|否|不(?:正确|对|是))|正确与否|是否|是不是|对不对|能否|可否|whether"
)
_JUDGEMENT_MARK = re.compile(
    r"\banswer\b(?:\s+is)?\s*[:：]?|答案\s*[是为:：]|判断(?:结果)?\s*[是为:：]|结论\s*[是为:：]"
)

_CHOICE_MARK = re.compile(
    r"(?:\banswer\b(?:\s+is)?|\b(?:option|choice)\b|\b(?:choose|select|pick)\b|答案|选项|选择?|应为|正确的?(?:一项|选项|描述)?[是为])"
    r"\s*(?:is|are|be|[是为:：])?\s*[\"'“‘(（\[【*]*\s*(?:option\s+|选项\s*)?([a-d])(?![a-z])(?!\s+[a-z]{2,}(?<!and)(?<!because)(?<!is)(?<!as)(?<!since))"
)
_CHOICE_START = re.compile(r"[\s\"'“‘(（\[【*]*([a-d])(?=\s*(?:$|[^a-z0-9\s'’]))")
_ALONE = re.compile(r"(?<![a-z0-9'’-])([a-d])(?![a-z0-9'’-])(?!\s+[a-z]{2,})")
_SEVERAL = re.compile(r"(?<![a-z0-9])[a-d]\s*(?:和|或者?|与|、|,|，|/|\band\b|\bor\b)\s*[a-d](?![a-z0-9'’])")
_OPTION = re.compile(
    r"(?:^|(?<=[\s。？?：:；;，,]))([a-d])\s*[.、:：)）]\s*(.+?)\s*(?=(?:[\s。？?：:；;，,][a-d]\s*[.、:：)）])|$)",
    re.DOTALL,
)


def read_judgement(text: str) -> str | None:
    """Read `true` or `false` from an answer; None if it says neither."""
    said = _PAIRS.sub(" ", _QUESTION.sub(" ", _plain(text)))
    if marks := list(_JUDGEMENT_MARK.finditer(said)):
        said = said[marks[-1].end() :] if _TRUTH.search(said[marks[-1].end() :]) else said
    found = _TRUTH.search(said)
    return None if found is None else str(found.lastgroup)


def read_choice(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """Read a letter A to D from an answer; None if it gives none or several.

    Args:
        text: the answer.
        options: the question's, from `options_of`; their words count where the answer has no letter.
    """
    said = _plain(text)
    marked = list(_CHOICE_MARK.finditer(said))
    found = marked[-1] if marked else _CHOICE_START.match(said)
    if found:
        return None if _SEVERAL.match(said, found.start(1)) else found[1].upper()
    alone = set() if _SEVERAL.search(said) else set(_ALONE.findall(said))
    if len(alone) == 1:
        return str(alone.pop()).upper()
    if alone or not options:
        return None
    restated = [letter for letter, words in options.items() if _bare(words) and _bare(words) in _bare(said)]
    return restated[0] if len(restated) == 1 else None


def options_of(question: str) -> dict[str, str]:
    """Return a question's options by their letters: `A. cyst B. nodule`; empty if it lists none."""
    found = {letter.upper(): words for letter, words in _OPTION.findall(_plain(question))}
    return found if len(found) > 1 else {}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower().strip()


def _bare(text: str) -> str:
    """Only letters and digits, so that signs and spaces do not matter."""
    return "".join(character for character in _plain(text) if character.isalnum())
