"""The model's tasks, and what it is asked for each by default: by language and anatomical region."""

from __future__ import annotations

import enum

from echovlm_edge.runtime.contracts.errors import InvalidInput


class Task(enum.Enum):
    """What is wanted of the images: the tasks of the model's training that differ in what the text is used for.

    The findings of one image are its caption; only the default prompt differs.
    """

    REPORT = "report"  # findings and impression
    FINDINGS = "findings"
    DIAGNOSIS = "diagnosis"  # the impression
    QUESTION = "question"
    JUDGE = "judge"  # whether a statement is true: True or False
    CHOICE = "choice"  # which of several options is right: its letter

    @property
    def closed(self) -> bool:
        """Whether it has one right answer, of a few."""
        return self in (Task.JUDGE, Task.CHOICE)


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
    (Task.FINDINGS, Language.EN): (
        "As an ultrasound imaging assistant, could you look at these images and write up the corresponding findings in English?"
    ),
    (Task.FINDINGS, Language.ZH): "这里有一些超声图像，给出这些图的超声描述",
    (Task.DIAGNOSIS, Language.EN): (
        "I'll be sharing a few ultrasound images with you. Could you please provide an English-language impression based "
        "on what you see?"
    ),
    (Task.DIAGNOSIS, Language.ZH): "我上传了几张超声图像，请直接给出专业的中文超声诊断提示，不需要描述图像所见。",
}

_CAPTIONS = {
    Language.EN: "Here is an ultrasound image; please help me generate a corresponding description.",
    Language.ZH: "这里有一张超声图像，帮我生成对应的描述",
}
# What precedes a statement or options.
_CLOSED = {
    (Task.JUDGE, Language.EN): "Is this description of the ultrasound images correct? Answer only True or False.",
    (Task.JUDGE, Language.ZH): "关于图像的描述是否正确？你只需要回答True或者False。",
    (Task.CHOICE, Language.EN): (
        "Which of the following options is correct for the ultrasound images? Give only its letter, do not repeat the option."
    ),
    (Task.CHOICE, Language.ZH): "下面关于图像的选项哪一项是正确的？不需要复述选项的内容，直接给出选项。",
}
_NOUNS = {Task.FINDINGS: "description", Task.JUDGE: "judgement"}
_EMPTY = {
    Task.QUESTION: "The question is empty: write what you want to know.",
    Task.JUDGE: "The statement is empty: write what is to be judged.",
    Task.CHOICE: "The options are empty: write for example A. Cyst. B. Solid nodule.",
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
    """What the model is asked: the caller's own `text`, or the task's default prompt; for closed tasks one after the other.

    Args:
        task: what is wanted.
        text: the caller's prompt, empty for the default; the question, the statement, or the options.
        images: how many were sent.
        language: of the default prompt.
        region: named in the default prompt where it is known.

    Raises:
        InvalidInput: no image, except for a question; or a question, statement or options without words.
    """
    if task is not Task.QUESTION and images == 0:
        noun = _NOUNS.get(task, task.value)
        raise InvalidInput(f"A {noun} needs at least one image: send one, or ask a question instead.")
    if text.strip():
        return f"{_CLOSED[task, language]}\n{text}" if task.closed else text
    if task in _EMPTY:
        raise InvalidInput(_EMPTY[task])
    prompt = _CAPTIONS[language] if task is Task.FINDINGS and images == 1 else _PROMPTS[task, language]
    if region is None:
        return prompt
    if language is Language.ZH:
        return f"{prompt}，检查部位：{_REGIONS_ZH[region]}"
    return f"{prompt} The examined region is: {region.value}."
