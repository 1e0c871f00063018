"""The model's three tasks, and what it is asked for each by default: by language and anatomical region."""

from __future__ import annotations

import enum

from echovlm_edge.runtime.contracts.errors import InvalidInput


class Task(enum.Enum):
    """What is wanted of the images."""

    REPORT = "report"
    DIAGNOSIS = "diagnosis"
    QUESTION = "question"


class Language(enum.Enum):
    """The language of the default prompt, and so of the text."""

    EN = "en"
    ZH = "zh"


class Region(enum.Enum):
    """Where the images were taken: the seven regions the model was trained on."""

    BREAST = "breast"
    THYROID = "thyroid"
    LIVER = "liver"
    KIDNEY = "kidney"
    GYNECOLOGY = "gynecology"
    HEART = "heart"
    VESSEL = "vessel"


# In the words of the model's training prompts.
_PROMPTS = {
    (Task.REPORT, Language.EN): (
        "Could you generate a structured English ultrasound report from the images I've shared, following the format: "
        "Ultrasound findings: {...}; Ultrasound impression: {...}?"
    ),
    (Task.REPORT, Language.ZH): "帮我给出超声报告",
    (Task.DIAGNOSIS, Language.EN): (
        "I'll be sharing a few ultrasound images with you. Could you please provide an English-language impression based "
        "on what you see?"
    ),
    (Task.DIAGNOSIS, Language.ZH): "我上传了几张超声图像，请直接给出专业的中文超声诊断提示，不需要描述图像所见。",
}

_REGIONS_ZH = {
    Region.BREAST: "乳腺",
    Region.THYROID: "甲状腺",
    Region.LIVER: "肝脏",
    Region.KIDNEY: "肾脏",
    Region.GYNECOLOGY: "妇科",
    Region.HEART: "心脏",
    Region.VESSEL: "血管",
}


def prompt_for(task: Task, text: str, images: int, language: Language, region: Region | None) -> str:
    """What the model is asked: the caller's own `text`, or the task's default prompt.

    Args:
        task: what is wanted.
        text: the caller's prompt or question; empty for the default.
        images: how many were sent.
        language: of the default prompt.
        region: named in the default prompt where it is known.

    Raises:
        InvalidInput: a report or diagnosis without an image, or a question without words.
    """
    if task is not Task.QUESTION and images == 0:
        raise InvalidInput(f"A {task.value} needs at least one image: send one, or ask a question instead.")
    if text.strip():
        return text
    if task is Task.QUESTION:
        raise InvalidInput("The question is empty: write what you want to know.")
    prompt = _PROMPTS[task, language]
    if region is None:
        return prompt
    if language is Language.ZH:
        return f"{prompt}，检查部位：{_REGIONS_ZH[region]}"
    return f"{prompt} The examined region is: {region.value}."
