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

_ECHOGENICITY = {
    ("anechoic", EN): "Anechoic.",
    ("hypoechoic", EN): "Hypoechoic.",
    ("isoechoic", EN): "Isoechoic.",
    ("hyperechoic", EN): "Hyperechoic.",
    ("", EN): "There is no lesion.",
    ("anechoic", ZH): "无回声。",
    ("hypoechoic", ZH): "低回声。",
    ("isoechoic", ZH): "等回声。",
    ("hyperechoic", ZH): "高回声。",
    ("", ZH): "没有病变。",
}
_NO_SIDE = {EN: "No side is marked.", ZH: "未标记侧别。"}
_NO_SIZE = {EN: "No size is measured.", ZH: "未测量大小。"}
SIZE_TOLERANCE = 0.2  # relative, of a right size


def write_report(truth: Truth, language: Language, random: np.random.Generator) -> str:
    """Write the report in one of its phrasings, in the model's format: findings, then impression."""
    findings = write_findings(truth, language, random)
    return _REPORT[language].format(findings=findings, impression=write_impression(truth, language, random))


def write_findings(truth: Truth, language: Language, random: np.random.Generator) -> str:
    """Write one of the phrasings of the findings, which is also the caption of an image."""
    return _fill(_pick(_FINDINGS[language], random), truth, language, _pick(_SIZE[language], random))


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


def organ(truth: Truth, language: Language) -> str:
    """Name the organ, with its side if it has one."""
    return ORGANS[truth.region, language].format(side=_side(truth, language))


def side(truth: Truth, language: Language) -> str:
    """Answer which side is shown."""
    if truth.side is None:
        return _NO_SIDE[language]
    word = SIDES[truth.side, language]
    return f"The {word} side." if language is EN else f"{word}侧。"


def name(truth: Truth, language: Language) -> str:
    """Name the finding."""
    return FINDINGS[truth.kind, language].name


def echogenicity(truth: Truth, language: Language) -> str:
    """Answer how bright the finding is."""
    return _ECHOGENICITY[truth.echogenicity, language]


def size(truth: Truth, language: Language) -> str:
    """Answer how large the finding is."""
    if truth.size_mm is None:
        return _NO_SIZE[language]
    return f"{truth.size_mm} mm." if language is EN else f"{truth.size_mm}mm。"


def size_is_right(text: str, truth: Truth, language: Language) -> bool:
    """Check an answer to the question of the size."""
    if truth.size_mm is None:
        return text.strip() == _NO_SIZE[language]
    return (said := _size_mm(text)) is not None and abs(said - truth.size_mm) <= SIZE_TOLERANCE * truth.size_mm


def other_language(text: str, language: Language) -> bool:
    """Check whether a text has characters of the other language; letters of options, True, False and mm belong to both."""
    if language is EN:
        return not text.isascii()
    return re.search(r"[a-z]{3}", text.replace("True", "").replace("False", "")) is not None


def facts(truth: Truth) -> Facts:
    """Return the facts that a correct report of this study has."""
    return Facts(truth.region, truth.kind, truth.side, truth.size_mm)


def parse_report(text: str, language: Language) -> Facts:
    """Read a report's facts: organ and side if findings and impression agree, the kind from the impression, the size.

    A fact is None if a section is missing, if the sections contradict each other, or if the region cannot have the finding.
    """
    sections = split_sections(text)
    findings, impression = (
        parse_findings(sections.findings, language),
        parse_impression(sections.impression, language),
    )
    if (findings.region, findings.side) != (impression.region, impression.side):
        return Facts(None, None, None, findings.size_mm)
    return Facts(impression.region, impression.kind, impression.side, findings.size_mm)


def parse_findings(text: str, language: Language) -> Facts:
    """Read the facts of a description: the kind from how the finding looks."""
    region, place_side = _place(text, language)
    looks = {
        kind: "|".join(
            re.escape(words.looks.format(margin=word)) for (_, spoken), word in MARGINS.items() if spoken is language
        )
        for kind, words in _possible(region, language).items()
    }
    return Facts(region, _longest(looks, text), place_side, _size_mm(text))


def parse_impression(text: str, language: Language) -> Facts:
    """Read the facts of an impression: the kind by its name."""
    region, place_side = _place(text, language)
    names = {kind: _whole(words.name) for kind, words in _possible(region, language).items()}
    return Facts(region, _longest(names, text), place_side, _size_mm(text))


def _possible(region: Region | None, language: Language) -> dict[str, Words]:
    """Return the findings that a region can have."""
    return {entry.kind: FINDINGS[entry.kind, language] for entry in (CATALOGUE[region].findings if region else ())}


def _longest(patterns: dict[str, str], text: str) -> str | None:
    """Return the kind whose pattern matches the most of a text."""
    found = {kind: match for kind, pattern in patterns.items() if (match := re.search(pattern, text.lower()))}
    return max(found, key=lambda kind: len(found[kind].group()), default=None)


def _size_mm(text: str) -> int | None:
    sizes = re.findall(r"(\d+)\s*mm", text)
    return int(sizes[0]) if len(sizes) == 1 else None


def _whole(name: str) -> str:
    """Make a pattern that matches a whole name: "normal" must not match "abnormal". Chinese has no spaces between words."""
    return rf"\b{name}\b" if name.isascii() else name


def _place(section: str, language: Language) -> tuple[Region | None, Side | None]:
    for (region, spoken), words in ORGANS.items():
        if spoken is language:
            for one in Side if "{side}" in words else (None,):
                if words.format(side=SIDES[one, language] if one else "").lower() in section.lower():
                    return region, one
    return None, None


def _fill(template: str, truth: Truth, language: Language, size: str) -> str:
    words = FINDINGS[truth.kind, language]
    size = size.format(mm=truth.size_mm) if truth.size_mm else ""
    margin = MARGINS[truth.margin, language] if truth.margin else ""
    place = organ(truth, language)
    text = template.format(organ=place, looks=words.looks.format(margin=margin), size=size, name=words.name)
    return text[0].upper() + text[1:]


def _side(truth: Truth, language: Language) -> str:
    return SIDES[truth.side, language] if truth.side else ""


def _pick(phrasings: tuple[str, ...], random: np.random.Generator) -> str:
    return phrasings[random.integers(len(phrasings))]
