"""Write reports, diagnoses and answers from a study's truth in two languages, and read the facts back from texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

import numpy as np

from demo.truth import CATALOGUE, Side, Truth
from echovlm_edge.runtime.contracts.sections import split_sections
from echovlm_edge.runtime.contracts.tasks import Language, Region


@dataclass(frozen=True)
class Facts:
    """The facts in a report; a fact is None if the report does not state it in known words."""

    region: Region | None
    kind: str | None
    side: Side | None
    size_mm: int | None


@dataclass(frozen=True)
class Words:
    """One finding in one language: its appearance and its name."""

    looks: str
    name: str


EN, ZH = Language.EN, Language.ZH

ORGANS = {
    (Region.BREAST, EN): "{side} breast",
    (Region.THYROID, EN): "{side} thyroid lobe",
    (Region.LIVER, EN): "{side} liver lobe",
    (Region.KIDNEY, EN): "{side} kidney",
    (Region.GYNECOLOGY, EN): "uterus and adnexa",
    (Region.HEART, EN): "heart",
    (Region.VESSEL, EN): "{side} carotid artery",
    (Region.BREAST, ZH): "{side}侧乳腺",
    (Region.THYROID, ZH): "甲状腺{side}叶",
    (Region.LIVER, ZH): "肝{side}叶",
    (Region.KIDNEY, ZH): "{side}肾",
    (Region.GYNECOLOGY, ZH): "子宫附件",
    (Region.HEART, ZH): "心脏",
    (Region.VESSEL, ZH): "{side}侧颈动脉",
}
SIDES = {(Side.LEFT, EN): "left", (Side.RIGHT, EN): "right", (Side.LEFT, ZH): "左", (Side.RIGHT, ZH): "右"}
MARGINS = {
    ("smooth", EN): "smooth",
    ("irregular", EN): "irregular",
    ("smooth", ZH): "光整",
    ("irregular", ZH): "不规则",
}

FINDINGS = {
    ("simple cyst", EN): Words("a round anechoic lesion with posterior enhancement", "simple cyst"),
    ("solid nodule", EN): Words("a hypoechoic solid lesion with {margin} margin", "solid nodule"),
    ("calcification", EN): Words("a bright echo with acoustic shadow", "calcification"),
    ("hemangioma", EN): Words("a well-defined hyperechoic lesion", "hemangioma"),
    ("steatosis", EN): Words("a diffuse increase of echogenicity that fades with depth", "steatosis"),
    ("stone", EN): Words("a bright echo with acoustic shadow in the renal sinus", "stone"),
    ("hydronephrosis", EN): Words("an anechoic separation of the renal sinus", "hydronephrosis"),
    ("fibroid", EN): Words("a hypoechoic mass of the uterine wall", "fibroid"),
    ("ovarian cyst", EN): Words("a round anechoic adnexal lesion", "ovarian cyst"),
    ("pelvic effusion", EN): Words("free anechoic fluid in the pelvis", "pelvic effusion"),
    ("pericardial effusion", EN): Words("an anechoic space in the pericardium", "pericardial effusion"),
    ("thrombus", EN): Words("an echogenic mass at the apex of the ventricle", "thrombus"),
    ("septal hypertrophy", EN): Words("a thickened interventricular septum", "septal hypertrophy"),
    ("calcified plaque", EN): Words("a bright wall plaque with acoustic shadow", "calcified plaque"),
    ("soft plaque", EN): Words("a hypoechoic wall plaque", "soft plaque"),
    ("thrombosis", EN): Words("echoes that fill the lumen", "thrombosis"),
    ("normal", EN): Words("no focal lesion", "normal"),
    ("simple cyst", ZH): Words("圆形无回声区，后方回声增强", "单纯囊肿"),
    ("solid nodule", ZH): Words("低回声实性结节，边缘{margin}", "实性结节"),
    ("calcification", ZH): Words("强回声斑，后方伴声影", "钙化灶"),
    ("hemangioma", ZH): Words("边界清晰的高回声团", "血管瘤"),
    ("steatosis", ZH): Words("弥漫性回声增强，深部回声衰减", "脂肪浸润"),
    ("stone", ZH): Words("肾窦内强回声，后方伴声影", "结石"),
    ("hydronephrosis", ZH): Words("肾窦分离呈无回声", "积水"),
    ("fibroid", ZH): Words("子宫肌壁低回声团", "子宫肌瘤"),
    ("ovarian cyst", ZH): Words("附件区圆形无回声区", "卵巢囊肿"),
    ("pelvic effusion", ZH): Words("盆腔游离液性暗区", "盆腔积液"),
    ("pericardial effusion", ZH): Words("心包腔内液性暗区", "心包积液"),
    ("thrombus", ZH): Words("心尖部高回声团", "附壁血栓"),
    ("septal hypertrophy", ZH): Words("室间隔增厚", "室间隔肥厚"),
    ("calcified plaque", ZH): Words("管壁强回声斑块，后方伴声影", "钙化斑块"),
    ("soft plaque", ZH): Words("管壁低回声斑块", "软斑块"),
    ("thrombosis", ZH): Words("管腔内充满低回声", "血栓形成"),
    ("normal", ZH): Words("未见明显局灶性病变", "未见明显异常"),
}

_FINDINGS = {
    EN: (
        "The {organ} shows {looks}{size}.",
        "In the {organ} there is {looks}{size}.",
        "Examination of the {organ}: {looks}{size}.",
    ),
    ZH: ("{organ}见{looks}{size}。", "{organ}内可见{looks}{size}。", "检查{organ}：{looks}{size}。"),
}
_SIZE = {
    EN: (", measuring {mm} mm", ", {mm} mm in size", " of {mm} mm"),
    ZH: ("，大小约{mm}mm", "，直径约{mm}mm", "，约{mm}mm"),
}
_IMPRESSION = {EN: ("{name}, {organ}.", "{organ}: {name}."), ZH: ("{organ}{name}。", "{organ}，{name}。")}
_REPORT = {
    EN: "Ultrasound findings: {findings} Ultrasound impression: {impression}",
    ZH: "超声所见：{findings}超声提示：{impression}",
}

QUESTIONS = {
    ("organ", EN): "Which organ is shown?",
    ("side", EN): "Which side is shown?",
    ("size", EN): "How large is the finding?",
    ("kind", EN): "What is the finding?",
    ("organ", ZH): "图像显示哪个器官？",
    ("side", ZH): "图像显示哪一侧？",
    ("size", ZH): "病变有多大？",
    ("kind", ZH): "病变是什么？",
}
_NO_SIDE = {EN: "No side is marked.", ZH: "未标记侧别。"}
_NO_SIZE = {EN: "No size is measured.", ZH: "未测量大小。"}


def write_report(truth: Truth, language: Language, random: np.random.Generator) -> str:
    """Write the report in one of its phrasings, in the model's format: findings, then impression."""
    findings = _fill(_pick(_FINDINGS[language], random), truth, language, _pick(_SIZE[language], random))
    return _REPORT[language].format(findings=findings, impression=write_impression(truth, language, random))


def every_report(truth: Truth, language: Language) -> list[str]:
    """List all phrasings of the report."""
    texts = []
    for findings, size, impression in product(_FINDINGS[language], _SIZE[language], _IMPRESSION[language]):
        first, second = (_fill(template, truth, language, size) for template in (findings, impression))
        texts.append(_REPORT[language].format(findings=first, impression=second))
    return list(dict.fromkeys(texts))


def write_impression(truth: Truth, language: Language, random: np.random.Generator) -> str:
    """Write one of the phrasings of the impression, which is the answer of a diagnosis."""
    return _fill(_pick(_IMPRESSION[language], random), truth, language, "")


def answer(question: str, truth: Truth, language: Language) -> str:
    """Answer one of QUESTIONS, which is named by its first key."""
    match question:
        case "organ":
            return ORGANS[truth.region, language].format(side=_side(truth, language)).strip()
        case "side":
            if truth.side is None:
                return _NO_SIDE[language]
            word = SIDES[truth.side, language]
            return f"The {word} side." if language is EN else f"{word}侧。"
        case "size":
            if truth.size_mm is None:
                return _NO_SIZE[language]
            return f"{truth.size_mm} mm." if language is EN else f"{truth.size_mm}mm。"
        case _:
            return FINDINGS[truth.kind, language].name


def facts(truth: Truth) -> Facts:
    """Return the facts that a correct report of this study has."""
    return Facts(truth.region, truth.kind, truth.side, truth.size_mm)


def parse_report(text: str, language: Language) -> Facts:
    """Read a report's facts: organ and side if findings and impression agree, the kind from the impression, the size.

    A fact is None if a section is missing, if the sections contradict each other, or if the region cannot have the finding.
    """
    sections = split_sections(text)
    places = [_place(section, language) for section in (sections.findings, sections.impression)]
    region, side = places[0] if places[0] == places[1] else (None, None)
    possible = {finding.kind for finding in CATALOGUE[region].findings} if region else set()
    kinds = [
        kind
        for (kind, spoken), words in FINDINGS.items()
        if spoken is language and kind in possible and re.search(_whole(words.name), sections.impression.lower())
    ]
    sizes = re.findall(r"(\d+)\s*mm", sections.findings)
    longest = max(kinds, key=lambda kind: len(FINDINGS[kind, language].name), default=None)
    return Facts(region, longest, side, int(sizes[0]) if len(sizes) == 1 else None)


def _whole(name: str) -> str:
    """Make a pattern that matches a whole name: "normal" must not match "abnormal". Chinese has no spaces between words."""
    return rf"\b{name}\b" if name.isascii() else name


def _place(section: str, language: Language) -> tuple[Region | None, Side | None]:
    for (region, spoken), organ in ORGANS.items():
        if spoken is language:
            for side in Side if "{side}" in organ else (None,):
                if organ.format(side=SIDES[side, language] if side else "").lower() in section.lower():
                    return region, side
    return None, None


def _fill(template: str, truth: Truth, language: Language, size: str) -> str:
    words = FINDINGS[truth.kind, language]
    size = size.format(mm=truth.size_mm) if truth.size_mm else ""
    margin = MARGINS[truth.margin, language] if truth.margin else ""
    organ = ORGANS[truth.region, language].format(side=_side(truth, language))
    text = template.format(organ=organ, looks=words.looks.format(margin=margin), size=size, name=words.name)
    return text[0].upper() + text[1:]


def _side(truth: Truth, language: Language) -> str:
    return SIDES[truth.side, language] if truth.side else ""


def _pick(phrasings: tuple[str, ...], random: np.random.Generator) -> str:
    return phrasings[random.integers(len(phrasings))]
