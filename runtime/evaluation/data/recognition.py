"""Recognise what a row asks, about which region and in which language, from its text: tables of words, tried in order."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from echovlm_edge.runtime.contracts.tasks import Language, Region

UNKNOWN = "unknown"  # a region or language that no word tells


class RowTask(enum.Enum):
    """What a row asks for; the kinds that the authors' question lists have."""

    REPORT = "report"
    FINDINGS = "findings"
    IMPRESSION = "impression"
    CAPTION = "caption"
    JUDGE = "judge"
    CHOICE = "choice"
    QUESTION = "question"

    @property
    def closed(self) -> bool:
        """Whether the answer is right or wrong, and its wording does not matter."""
        return self in (RowTask.JUDGE, RowTask.CHOICE)


# What a question says it does not want, up to the clause's end: "no findings needed", "不用写超声所见".
_UNWANTED = re.compile(
    r"(?:不应该?|不需要?|不要|不用|不必|不写|不得|不含|不包[含括]|不涉及|无需|无须|"
    r"跳过|省略|略去|忽略|避免|而非|别|勿)"
    r"[^，。；;！!？?,]*"
    r"|\b(?:without|skip\w*|omit\w*|exclud\w*|leav\w* out|hold off|rather than|not|instead of|avoid\w*|(?<!or )no|"
    r"(?:do|does|should|need)(?:n['’]t| not))\b[^,.;!?—]*?(?=[,.;!?—]|$|\b(?:and|just|only)\b)"
    r"|[^，。；]*就是[^，。；]*"  # what a word means
)
_CHOICE = (
    r"单选|选择题|选项|哪个?一?[项条份]|选出|选择(?:正确|与|符合)|\b(?:single|multiple)[- ]choice|\boptions?\b|"
    r"\bselect the (?:correct|right)|"
    r"\bwhich (?:of the following|statement|description|choice|one|report)\b|\bcorrect (?:statement|choice|item|one)\b|"
    r"(?:^|[\s。？?：:])a\s*[.、:：)）]\s*\S[\s\S]*\bb\s*[.、:：)）]"  # a list of options
)
_JUDGE = r"(?<![a-z])t(?:rue|ure)(?![a-z])|判断题|[回作]?答[“\"'‘]?[是对][”\"'’]?(?:或|还是|/)|\byes or no\b|是否(?:正确|一致|相符|属实)"
_IMPRESSION = r"诊断(?!医|师|专家|视角|角度|助手|科|人员|图|影像|学|设备)|提示|结论|印象|\bimpressions?\b|\bdiagnos[ei]s\b|\bconclusions?\b"
_FINDINGS = r"描述|所见|\bdescri(?:be|bing|ption)|\bfindings?\b"
_DESCRIPTION = (
    rf"{_FINDINGS}|描绘|刻画|叙述|陈述|说明|注释|解说|解读|解析|解释|内容|特征|特点|表现|信息|文字|记录|总结|摘要|概括|概述|要点|细节|列出|"
    r"有(?:什么|哪些)|(?:显示|看到|看出|反映|呈现|包含)[了出]?(?:什么|哪些)|"
    r"\bcaption|\bnarrat|\bportray|\bdepict|\bobservations?\b|\bcontents?\b|\barticulat|\bexplain|\binterpret|"
    r"\bwhat (?:is|are|do you see|can be seen|does)\b[^?]*\b(?:image|scan|picture|sonogram)"
)
_REPORT = r"报告|\breports?\b"
MANY = float("inf")


@dataclass(frozen=True)
class Form:
    """A form of question.

    Attributes:
        task: what such a question asks for.
        says: patterns that the question contains, each of them.
        fewest: of the pictures that it is about.
        most: likewise.
    """

    task: RowTask
    says: tuple[str, ...]
    fewest: int = 0
    most: float = MANY


# The first form that fits decides. A description of one picture is a caption, of several it is the findings, as in the authors' lists.
FORMS = (
    Form(RowTask.JUDGE, (_JUDGE,)),
    Form(RowTask.CHOICE, (_CHOICE,)),
    Form(RowTask.REPORT, (_REPORT,)),
    Form(RowTask.REPORT, (_FINDINGS, _IMPRESSION)),
    Form(RowTask.IMPRESSION, (_IMPRESSION,)),
    Form(RowTask.CAPTION, (_DESCRIPTION,), 1, 1),
    Form(RowTask.FINDINGS, (_DESCRIPTION,), 2),
)


def task_of(question: str, pictures: int) -> RowTask:
    """Recognise what a question about so many pictures asks for: the task of the first of `FORMS` that fits, else a free question."""
    asked = _UNWANTED.sub(" ", question.lower())
    for form in FORMS:
        if form.fewest <= pictures <= form.most and all(re.search(words, asked) for words in form.says):
            return form.task
    return RowTask.QUESTION


# Words of each region's organs, in lower case. The region whose words occur most often is the row's.
REGION_WORDS = {
    Region.BREAST: r"乳腺|乳房|乳头|乳管|乳晕|乳导管|\bbreasts?\b|\bmammary\b|\bnipple",
    Region.THYROID: r"甲状腺|甲状旁腺|峡部|\b(?:para)?thyroid|\bisthmus\b",
    Region.LIVER: r"肝(?!素)|胆囊|门静脉|\bliver\b|\bhepatic\b|\bgallbladder\b|\bportal vein",
    Region.KIDNEY: r"肾(?!上腺)|肾盂|集合系统|皮髓质|\bkidneys?\b|\brenal\b(?! arter)",
    Region.GYNECOLOGY: (
        r"子宫|宫颈|宫腔|卵巢|附件|内膜(?!中)|盆腔|"
        r"\buter(?:us|ine)\b|\bovar(?:y|ies|ian)\b|\badnexa|\bcervi(?:x|cal canal)\b|\bendometri|\bpelvi[cs]\b"
    ),
    Region.HEART: (
        r"心脏|心室|心房|心包|心尖|心肌|室间隔|[二三]尖瓣|主动脉瓣|射血|"
        r"\bhearts?\b|\bventric|\batri(?:um|al|a)\b|\bcardiac\b|\bpericardi|\bmitral\b|\btricuspid\b"
    ),
    Region.VESSEL: (
        r"颈动脉|动脉血管|内中膜|斑块|管壁|管腔|股动脉|静脉血栓|椎动脉|"
        r"\bcarotid|\bplaques?\b|\bintima|\bvessel wall|\blumen\b|\bfemoral\b|\bvertebral arter"
    ),
}


def region_of(question: str, reference: str) -> str:
    """Recognise the region: of the question if it names one, else of the reference answer, else `UNKNOWN`."""
    return _most_named(question.lower()) or _most_named(reference.lower()) or UNKNOWN


def _most_named(text: str) -> str:
    counts = {region: len(re.findall(words, text)) for region, words in REGION_WORDS.items()}
    best = max(counts, key=lambda region: counts[region])
    return best.value if counts[best] else ""


_CHINESE = re.compile(r"[\u3400-\u9fff]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")


def language_of(question: str, reference: str, task: RowTask) -> str:
    """Recognise the language: of the reference answer, or of the question where the answer is a letter or a truth value.

    Chinese has more Chinese characters than Latin words; a text with neither is `UNKNOWN`.
    """
    text = question if task.closed else reference
    chinese, latin = len(_CHINESE.findall(text)), len(_LATIN_WORD.findall(text))
    if not chinese and not latin:
        return UNKNOWN
    return (Language.ZH if chinese >= latin else Language.EN).value
