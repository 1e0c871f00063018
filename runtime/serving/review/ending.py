"""A text that was cut off, or is not there."""

from __future__ import annotations

import re

from echovlm_edge.runtime.contracts.request import FinishReason
from echovlm_edge.runtime.serving.review.reviewed import Reviewed

# What nothing ends with that is whole. Of Chinese words, those that only something else can follow.
_OPEN = re.compile(
    r"(?:[,，、:：(（\[{/+×-]|(?<![A-Za-z])(?:and|or|the|of|with|in|on|at|to|is|are|by|for|from|measuring|approximately|about)"
    r"|及|和|与|或|约|大小约|未见|可见|呈|伴|并|为)[\s*#]*$",
    re.IGNORECASE,
)


def is_cut_off(reviewed: Reviewed) -> str | None:
    """Check that the model, not a limit, ended the text, and not within a sentence."""
    if not reviewed.text.strip():
        return reviewed.say("The text is empty.", "文本为空。")
    if reviewed.finish is FinishReason.LENGTH:
        return reviewed.say(
            "The text was cut off at the limit of tokens; its end is missing.", "文本达到长度上限而被截断，结尾缺失。"
        )
    if _OPEN.search(reviewed.text[-200:]):
        return reviewed.say("The text ends within a sentence.", "文本在句中结束。")
    return None
