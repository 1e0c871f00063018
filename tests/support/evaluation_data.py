"""Write data sets in the authors' two formats, with small pictures, for tests of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 56  # pixels: four tokens a picture
ORGANS = ("左侧乳腺", "甲状腺右叶", "肝左叶", "右肾", "子宫附件", "心脏", "右侧颈动脉")
ENGLISH_ORGANS = (
    "left breast",
    "right thyroid lobe",
    "left liver lobe",
    "right kidney",
    "uterus",
    "heart",
    "right carotid artery",
)
LOOKS = ("低回声实性结节，边缘光整", "圆形无回声区，后方回声增强", "强回声斑，后方伴声影", "未见明显局灶性病变")
ENGLISH_LOOKS = ("a hypoechoic solid nodule", "a round anechoic cyst", "a bright echo with shadow", "no focal lesion")
OPTIONS = "A. 囊肿 B. 结节 C. 钙化 D. 正常"


def write_picture(path: Path, seed: int) -> None:
    """Write a small grey picture of noise, another one for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def conversation(id: str, pictures: Sequence[str], *turns: str, system: str = "", **fields: Any) -> dict[str, Any]:
    """Make a row with `conversations`; turns alternate between questions and answers."""
    spoken = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]
    first = [{"from": "system", "value": system}] if system else []
    return {"id": id, "image": list(pictures), "description": turns[-1], "conversations": [*first, *spoken], **fields}


def messages(id: str, pictures: Sequence[str], *turns: str, **fields: Any) -> dict[str, Any]:
    """Make a row with `messages`, the converted form."""
    spoken = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    return {"id": id, "messages": spoken, "images": list(pictures), **fields}


def mixed_row(number: int) -> dict[str, Any]:
    """Make one of the rows of `write_mixed`: every task in turn, both languages, both formats, one picture or two."""
    place = number + number // 7  # so that each task comes to each organ
    organ, looks = ORGANS[place % 7], LOOKS[number % 4]
    english, english_looks = ENGLISH_ORGANS[place % 7], ENGLISH_LOOKS[number % 4]
    picture, second = f"pictures/{number}.png", f"pictures/{number}b.png"
    asked = {
        0: ((picture,), "请给出完整的超声报告。", f"超声所见：{organ}见{looks}。超声提示：{organ}异常。"),
        1: ((picture, second), "请描述这几张图像。", f"{organ}见{looks}。"),
        2: ((picture,), "Give your impression only.", f"{english_looks}, {english}."),
        3: ((picture,), "请描述这张图像。", f"{organ}内可见{looks}。"),
        4: ((picture,), "描述与图像一致吗？只回答True或False。", ("True", "False")[number % 2]),
        5: ((picture,), f"单选题，哪一项正确？{OPTIONS}", "ABCD"[number % 4]),
        6: ((picture,), "How large is the lesion?", f"The lesion of the {english} measures {10 + number % 20} mm."),
    }
    pictures, question, answer = asked[number % 7]
    marked = "<image>" * len(pictures) + question
    if number % 2:
        return conversation(f"row-{number}", pictures, marked, answer, system="You are a helpful assistant.")
    return messages(f"row-{number}", pictures, marked, answer)


def write_rows(folder: Path, rows: Sequence[dict[str, Any]], name: str = "data.json") -> Path:
    """Write rows as a data file, and a picture for every path in them; returns the file."""
    for row in rows:
        given = row.get("image", row.get("images", ()))
        for path in [given] if isinstance(given, str) else given:
            write_picture(folder / path, sum(path.encode()) * 1000 + len(path))
    file = folder / name
    file.write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")
    return file


def write_mixed(folder: Path, count: int) -> Path:
    """Write a data file of so many rows of every kind, with their pictures."""
    return write_rows(folder, [mixed_row(number) for number in range(count)])
