"""The vocabulary that is read: English and Chinese words, and what each means. Chinese is matched longest word first."""

from __future__ import annotations

import enum
from typing import NamedTuple

from echovlm_edge.runtime.facts.values import Organ, Side


class Role(enum.Enum):
    """What a word does in a sentence; its value is the letter that grammar patterns have for it."""

    SIDE = "S"
    ORGAN = "O"  # value: an Organ, or None for one that is known but not read
    PART = "P"  # of an organ: its lobe
    AREA = "R"  # of the body, with a side but without an organ
    LESION = "L"  # value: a Lesion
    NORMAL = "N"  # no lesion, where nothing but an organ is called so
    ECHO = "E"
    MARGIN = "M"
    SIZE = "Z"  # value: the largest measure in mm
    BIRADS = "B"
    TIRADS = "T"
    NOT = "n"  # denies what follows
    NOT_BEFORE = "b"  # denies what came before in its clause
    UNSURE = "u"  # makes its clause a guess, a wish or history
    CHANGE = "c"  # "no change in the nodule" does not deny the nodule
    TISSUE = "t"  # an organ's own substance, which has an echogenicity too
    WITHIN = "w"  # a preposition: the lesion before is in the organ after
    BESIDE = "d"  # a comparison or a distance: the organ or the size after is not the lesion's
    BOUND = "l"  # the size after is a limit
    SEE = "s"
    IS = "i"
    ONE = "1"
    AND = "A"
    WITH = "W"
    OR = "|"
    BUT = "-"
    COMMA = ","
    END = "."
    QUESTION = "?"
    FILLER = "F"  # changes nothing
    OTHER = "x"  # an unknown word


class Lesion(NamedTuple):
    """A kind of finding.

    Attributes:
        name: in English.
        organ: the only one that can have it.
        elsewhere: whether the word may also be about something else in another organ; there it is not read.
        anywhere: whether it is about no organ, unless its sentence names one.
    """

    name: str
    organ: Organ | None = None
    elsewhere: bool = False
    anywhere: bool = False


GENERIC = "lesion"

_ORGANS = {
    Organ.BREAST: "breast|mammary|乳腺|乳房",
    Organ.THYROID: "thyroid|thyroid gland|isthmus|甲状腺|甲状腺峡部|峡部",
    Organ.LIVER: "liver|hepatic|肝脏|肝|肝内|肝实质",
    Organ.GALLBLADDER: "gallbladder|gall bladder|胆囊|胆囊腔|胆囊内",
    Organ.KIDNEY: "kidney|renal|renal pelvis|renal sinus|肾脏|肾|肾盂|肾窦",
    Organ.SPLEEN: "spleen|splenic|脾脏|脾",
    Organ.PANCREAS: "pancreas|pancreatic|pancreatic duct|胰腺|胰|胰管",
    Organ.HEART: (
        "heart|cardiac|pericardium|pericardial|left ventricle|right ventricle|left atrium|right atrium|left ventricular|"
        "right ventricular|left atrial|right atrial|ventricle|ventricular|atrium|atrial|myocardium|interventricular septum|"
        "mitral valve|mitral|aortic valve|aortic root|tricuspid valve|tricuspid|pulmonary valve|心脏|左室|右室|左房|右房|左心室|"
        "右心室|左心房|右心房|左心|右心|心包|心包腔|室间隔|二尖瓣|三尖瓣|主动脉瓣|肺动脉瓣|心尖|心尖部|心肌"
    ),
    Organ.UTERUS: (
        "uterus|uterine|endometrium|endometrial|myometrium|myometrial|cervix|uterine cavity|uterine wall|子宫|宫腔|子宫内膜|宫颈|"
        "子宫肌壁|子宫肌层|肌壁间|子宫前壁|子宫后壁|宫体"
    ),
    Organ.OVARY: "ovary|ovaries|ovarian|adnexa|adnexal|adnexae|卵巢|附件|附件区",
    Organ.PROSTATE: "prostate|prostatic|prostate gland|前列腺",
    Organ.BLADDER: "bladder|urinary bladder|膀胱",
    Organ.TESTIS: "testis|testes|testicle|testicular|epididymis|scrotum|scrotal|睾丸|附睾|阴囊|鞘膜",
    Organ.VESSEL: (
        "carotid|carotid artery|carotid arteries|common carotid artery|internal carotid artery|external carotid artery|"
        "carotid bulb|carotid bifurcation|jugular vein|internal jugular vein|femoral artery|femoral vein|common femoral vein|"
        "superficial femoral vein|superficial femoral artery|popliteal artery|popliteal vein|subclavian artery|vertebral artery|"
        "saphenous vein|great saphenous vein|portal vein|hepatic vein|renal artery|renal vein|splenic vein|aorta|abdominal aorta|"
        "artery|arteries|vein|颈动脉|颈总动脉|颈内动脉|颈外动脉|颈动脉分叉处|椎动脉|锁骨下动脉|股动脉|股静脉|股总静脉|腘动脉|腘静脉|"
        "大隐静脉|小隐静脉|肌间静脉|胫后静脉|腓静脉|颈静脉|颈内静脉|主动脉|腹主动脉|门静脉|门脉|肝静脉|脾静脉|肾动脉|肾静脉|下腔静脉|动脉|静脉"
    ),
    Organ.LYMPH_NODE: "lymph node|淋巴结",
    Organ.FETUS: (
        "fetus|foetus|fetal|placenta|placental|gestational sac|amniotic fluid|embryo|yolk sac|crown rump length|"
        "biparietal diameter|pregnancy|胎儿|胎心|胎盘|羊水|孕囊|早孕|妊娠|宫内妊娠|宫内早孕|头臀长|双顶径|股骨长|妊娠囊|胚芽|卵黄囊"
    ),
    Organ.SUPERFICIAL: "subcutaneous|soft tissue|皮下|软组织|浅表",
    None: (
        "parotid|parotid gland|salivary gland|submandibular gland|pleura|pleural|lung|abdomen|abdominal cavity|peritoneal cavity|"
        "peritoneal|pelvis|pelvic|pelvic cavity|bowel|appendix|adrenal|adrenal gland|ureter|bile duct|common bile duct|cbd|"
        "common hepatic duct|ureterovesical junction|intrahepatic bile duct|"
        "intrahepatic duct|muscle|tendon|joint|eye|orbit|stomach|knee|shoulder|right upper quadrant|"
        "right lower quadrant|left upper quadrant|left lower quadrant|腮腺|颌下腺|胸腔|胸膜|肺|腹腔|盆腔|肠|肠管|肠壁|阑尾|肾上腺|输尿管|"
        "胆管|胆总管|肝内胆管|肝外胆管|肌肉|肌腱|关节|关节腔|眼|玻璃体|胃|输卵管|腹膜后"
    ),
}

# Sides that are part of an organ's word.
SIDED_ORGANS = {
    "左乳": (Side.LEFT, Organ.BREAST),
    "右乳": (Side.RIGHT, Organ.BREAST),
    "双乳": (Side.BOTH, Organ.BREAST),
    "两乳": (Side.BOTH, Organ.BREAST),
}

_SIDES = {
    Side.LEFT: "left|left sided|左侧|左",
    Side.RIGHT: "right|right sided|右侧|右",
    Side.BOTH: "both|bilateral|bilaterally|both sides|either side|双侧|双|两侧|左右侧|左右两侧|左右|两",
}

_LESIONS = {
    Lesion("nodule"): "nodule|结节|小结节",
    Lesion("mass"): "mass|masses|tumor|tumour|neoplasm|lump|肿块|肿物|包块|团块|肿瘤",
    Lesion("cyst"): "cyst|囊肿",
    Lesion("stone"): "stone|calculus|calculi|结石",
    Lesion("stone", Organ.GALLBLADDER): "gallstone|gallbladder stone|cholelithiasis|cholecystolithiasis",
    Lesion("stone", Organ.KIDNEY): "nephrolithiasis|kidney stone",
    Lesion("plaque"): "plaque|calcified plaque|斑块|钙化斑块|软斑|硬斑",
    Lesion("effusion"): "effusion|fluid collection|积液",
    Lesion("effusion", anywhere=True): "free fluid|游离液体|游离液性暗区",
    Lesion("calcification"): (
        "calcification|microcalcification|macrocalcification|calcified focus|calcified foci|钙化|钙化灶|钙化斑|微钙化"
    ),
    Lesion("hemangioma"): "hemangioma|haemangioma|血管瘤",
    Lesion("fibroid", Organ.UTERUS): "fibroid|leiomyoma|myoma|肌瘤",
    Lesion("fibroadenoma", Organ.BREAST): "fibroadenoma|纤维腺瘤",
    Lesion("thrombus"): "thrombus|thrombi|thrombosis|血栓|血栓形成",
    Lesion("stenosis"): "stenosis|stenoses|狭窄",
    Lesion("hydronephrosis", Organ.KIDNEY): "hydronephrosis",
    Lesion("hydronephrosis", Organ.KIDNEY, elsewhere=True): "积水",
    Lesion("steatosis", Organ.LIVER): "steatosis|fatty liver|fatty infiltration|hepatic steatosis|脂肪肝|脂肪浸润",
    Lesion("cirrhosis", Organ.LIVER): "cirrhosis|肝硬化",
    Lesion("polyp"): "polyp|息肉",
    Lesion("abscess"): "abscess|abscesses|脓肿",
    Lesion("hematoma"): "hematoma|haematoma|血肿",
    Lesion("lipoma"): "lipoma|脂肪瘤",
    Lesion("hypertrophy"): "hypertrophy|肥厚",
    Lesion("hyperplasia"): "hyperplasia|增生",
    Lesion("regurgitation"): "regurgitation|反流",
    Lesion("adenomyosis", Organ.UTERUS): "adenomyosis|腺肌症|腺肌病",
    Lesion("malignancy"): "malignancy|malignancies|carcinoma|cancer|metastasis|metastases|癌|转移瘤|转移灶",
    Lesion("lymphadenopathy", Organ.LYMPH_NODE): (
        "lymphadenopathy|enlarged lymph node|enlarged axillary lymph node|enlarged cervical lymph node|肿大淋巴结|淋巴结肿大"
    ),
    Lesion(GENERIC): (
        "lesion|focal lesion|abnormality|abnormalities|space occupying lesion|mass lesion|focal abnormality|病变|病灶|异常|异常回声|"
        "占位|占位性病变|占位病变|局灶性病变|异常占位"
    ),
}


class Echo(NamedTuple):
    """An echogenicity.

    Attributes:
        name: in English.
        focal: whether the word means a spot that has it, as 低回声区 does; else an organ's own tissue may have it.
    """

    name: str
    focal: bool


_ECHOES = {
    "anechoic": "anechoic|无回声",
    "hypoechoic": "hypoechoic|hypo echoic|markedly hypoechoic|低回声|稍低回声|极低回声|弱回声",
    "isoechoic": "isoechoic|iso echoic|等回声|中等回声",
    "hyperechoic": "hyperechoic|hyper echoic|高回声|稍高回声|强回声|稍强回声",
    "mixed": "mixed echogenicity|mixed echo|mixed echoic|混合回声|混合性回声|囊实混合回声|囊实性混合回声",
}
_SPOTS = {True: (" area", " focus", " foci", " region"), False: ("区", "团", "光团", "灶", "光斑", "包块")}

_MARGINS = {
    "circumscribed": (
        "well defined|well circumscribed|circumscribed|smooth margin|smooth border|clear margin|clear boundary|clear boundaries|"
        "clear border|regular margin|sharply demarcated|well demarcated|margin is clear|margins are clear|boundary is clear|"
        "boundaries are clear|border is clear|margin is smooth|margins are smooth|smooth in margin"
    ),
    "ill-defined": (
        "ill defined|poorly defined|poorly circumscribed|indistinct margin|irregular margin|irregular border|spiculated|"
        "spiculated margin|unclear boundary|unclear boundaries|unclear margin|unclear border|indistinct border|not well defined|"
        "not circumscribed|non circumscribed|not well circumscribed|margin is irregular|margins are irregular|"
        "margin is unclear|margins are unclear|boundary is unclear|boundaries are unclear|"
        "margin is indistinct|margins are indistinct"
    ),
}
# 边界尚清晰, 边缘欠规则: a word for the edge, a degree, a quality.
_EDGES, _DEGREES = ("边界", "边缘", "边界及边缘"), ("", "尚", "较", "均")
_QUALITIES = ("清", "清晰", "清楚", "光整", "光滑", "规则", "整齐", "整")
_FAULTS = ("模糊", "毛糙", "毛刺", "不甚清", "尚欠清", *(denied + good for denied in "不欠" for good in _QUALITIES))
CHINESE_MARGINS = {
    edge + degree + word: value
    for value, words in (("circumscribed", _QUALITIES), ("ill-defined", _FAULTS))
    for edge in _EDGES
    for degree in _DEGREES
    for word in words
}

_OTHERS = {
    Role.PART: "lobe|叶",
    Role.AREA: (
        "axillary|cervical|inguinal|axilla|axillae|neck|groin|lower extremity|upper extremity|leg|thigh|calf|arm|下肢|上肢|小腿|大腿|"
        "背部|胸部|腰部|颈部|腋窝|腋下|腹股沟|腹股沟区"
    ),
    Role.NORMAL: "normal|unremarkable|正常",
    Role.TISSUE: "parenchyma|parenchymal|echotexture|echogenicity|background|实质|腺体|腺体层|实质回声|halo|晕|声晕|低回声晕|回声带",
    Role.NOT: (
        "no|without|no evidence of|without evidence of|no sign of|no signs of|absence of|free of|negative for|neither|nor|does not show|"
        "do not show|did not show|未见|未见到|未探及|未发现|未显示|未查见|未检出|未测及|未探查到|未及|未触及|未伴|不伴|没有|无|并无|均未见"
    ),
    Role.NOT_BEFORE: (
        "absent|not seen|not identified|not detected|not visualized|not visualised|not observed|not found|not present|not evident|"
        "not demonstrated|not noted|has resolved|have resolved|resolved|disappeared|未见显示|消失|已消失"
    ),
    Role.UNSURE: (
        "possible|possibly|probable|probably|suspected|suspicious for|suspicion|cannot exclude|can not exclude|cannot be excluded|"
        "can not be excluded|not excluded|cannot rule out|can not rule out|cannot be ruled out|can not be ruled out|rule out|ruled out|"
        "exclude|excluded|may|might|could|versus|vs|differential|indication|history|previous|previously|prior|status post|s p|"
        "post operative|postoperative|resection|resected|excised|excision|removed|removal|recommend|recommended|biopsy|"
        "evaluate|evaluation|questionable|equivocal|likely|unlikely|if|risk|comparison|aspiration|surgery|clinical|palpable|"
        "should|would|whether|appears to be|not without|no absence of|not free of|no longer|not exclude|surveillance|known|"
        "可能|可疑|疑似|疑|不除外|除外|不能除外|未除外|不排除|不能排除|排除|待排|待查|术后|切除|建议|随访|复查|必要时|病史|史|倾向|鉴别|"
        "临床|并非无|并非没有|不能完全排除|是否|预防|穿刺|剔除"
    ),
    Role.CHANGE: "change|changes|increase|decrease|growth|difference|enlargement|变化|改变|差异|增大|缩小|增多",
    Role.WITHIN: "in|of|within|at|involving|inside|on|along|arising from|originating from|位于|来自",
    Role.BESIDE: (
        "adjacent to|next to|near|behind|posterior to|anterior to|compared to|compared with|relative to|than|similar to|"
        "isoechoic to|hyperechoic to|hypoechoic to|away from|from|distance|depth|邻近|紧邻|距|距离|距体表|距皮肤|相对于|与周围|毗邻|深度"
    ),
    Role.BOUND: "less than|greater than|more than|larger than|smaller than|up to|over|under|below|above|小于|大于|不超过|超过|至|to",
    Role.SEE: "可见|见|探及|可探及|查见|测及|发现|示|显示|内见|均可见",
    Role.IS: (
        "is|are|was|were|appears|appear|show|shows|showed|seen|noted|identified|detected|demonstrates|demonstrate|reveals|reveal|"
        "revealed|contains|visualized|observed|found|has|have|measures|measured|呈|为|是"
    ),
    Role.ONE: "a|an|one|two|three|multiple|several|few|一个|一枚|一|数个|数枚|多个|多发|多枚|两个|两枚",
    Role.AND: "and|as well as|plus|、|及|和|与|以及|并",
    Role.WITH: "with|containing|伴|合并|伴有|内伴",
    Role.OR: "or|或|and or|或者",
    Role.BUT: "but|however|except|although|though|while|whereas|yet|apart from|other than|但|而|但是|另|另见|其余|余|除|并见",
    Role.OTHER: (
        "nodular|cystic change|thyroid cartilage|nipple|不等回声|等低回声|低等回声|高低回声|结节性|乳头|乳头状|胆固醇|内中膜|内膜|"
        "乳腺小叶|小叶|囊肿壁|stone free|cyst wall|left lateral decubitus|right lateral decubitus|叶状|分叶|分叶状|中叶|肝门|眼睛|"
        "胃肠|肺部|癌胚|癌胚抗原|肿瘤标志物|尾叶|尾状叶"
    ),
    Role.FILLER: (
        "the|either|this|there|it|its|any|obvious|obviously|significant|"
        "significantly|definite|clear|evident|apparent|focal|suspicious|solid|"
        "cystic|discrete|dominant|abnormal|large|larger|enlarged|other|further|additional|simple|complex|round|oval|small|tiny|"
        "calcified|soft|new|visible|detectable|sonographic|sonographically|ultrasound|ultrasonic|definitive|"
        "regional|suggestive|suggestive of|suggests|consistent with|compatible with|in keeping with|findings|finding|impression|"
        "gland|region|area|measuring|approximately|about|in size|diffuse|mild|moderate|severe|space|occupying|organized|"
        "been|be|being|discernible|recognizable|benign|malignant|intraluminal|mural|gross|acute|deep|"
        "明显|明确|确切|显著|其他|其它|任何|局灶性|局限性|实性|囊性|实质性|肿大|单纯|圆形|类圆形|椭圆形|内|的|处|区|约|大小约|直径约|"
        "范围|范围约|所见|考虑|提示|符合|超声|超声所见|超声提示|检查|回声|均|等|灶|形|后|较大者|较大|最大|最大者|大者|其中|"
        "团|声像图|占位性|软组织性|形成|及其|性|腔|管壁|肿|明显的|游离|良性|恶性|深部|浅|部|附壁|钙化性"
    ),
}


def vocabulary() -> dict[str, tuple[Role, object]]:
    """Return every word and phrase in lower case with its role and value, English nouns in the plural too."""
    words: dict[str, tuple[Role, object]] = {}
    for role, spoken in _OTHERS.items():
        words |= dict.fromkeys(spoken.split("|"), (role, None))
    for name, spoken in _ECHOES.items():
        for word in spoken.split("|"):
            words[word] = (Role.ECHO, Echo(name, False))
            words |= {word + spot: (Role.ECHO, Echo(name, True)) for spot in _SPOTS[word.isascii()]}
    words |= dict.fromkeys(("液性暗区", "液性无回声区"), (Role.ECHO, Echo("anechoic", True)))
    for role, table in ((Role.SIDE, _SIDES), (Role.ORGAN, _ORGANS), (Role.LESION, _LESIONS), (Role.MARGIN, _MARGINS)):
        for value, spoken in table.items():
            for word in spoken.split("|"):
                words[word] = (role, value)
                if word.isascii():
                    words.setdefault(f"{word}s", (role, value))
    words["lobes"] = words["lobe"]
    words |= {word: (Role.MARGIN, value) for word, value in CHINESE_MARGINS.items()}
    return words
