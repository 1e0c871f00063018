"""What a row asks, about which region, in which language: read from its words."""

from __future__ import annotations

import pytest

from echovlm_edge.runtime.evaluation.data.recognition import UNKNOWN, RowTask, language_of, region_of, task_of

R, F, I, C, J, H, Q = RowTask  # noqa: E741


@pytest.mark.parametrize(
    ("question", "pictures", "task"),
    [
        ("请根据图像写一份超声报告。", 3, R),
        ("给出所见描述和诊断结论。", 2, R),
        ("Write a structured report: Ultrasound findings: {...}; Ultrasound impression: {...}.", 1, R),
        ("Please give both the findings and an impression.", 2, R),
        ("请描述这些图像。", 4, F),
        ("这几张图像显示了什么？", 2, F),
        ("What do you see in these ultrasound images?", 2, F),
        ("Describe the findings; no impression needed.", 3, F),
        ("只给出诊断提示，不用写超声所见。", 3, I),
        ("直接写诊断，不需要描述图像。注意超声所见就是对图像的描述", 1, I),
        ("Give your diagnostic impression; skip the findings.", 2, I),
        ("Only the impression, not the descriptive findings.", 2, I),
        ("作为超声诊断医师，请描述这张图像，不应该有诊断的内容。", 1, C),
        ("请用一句话概括这张图。", 1, C),
        ("Describe what is shown in this image.", 1, C),
        ("Consider yourself an expert and generate a caption that fits.", 1, C),
        ("报告与这些图像一致吗？只需回答True或False。", 3, J),
        ("这张图的描述对吗？回答Ture/False", 1, J),
        ("Does the report match? Answer yes or no.", 1, J),
        ("单选题：下列报告描述中哪项正确？", 2, H),
        ("Which option is correct? Repeat its text.", 1, H),
        ("以下哪一项与图像相符？\nA. 囊肿\nB. 结节", 1, H),
        ("What is it? A. cyst B. nodule", 1, H),
        ("病变有多大？", 1, Q),
        ("Is the lesion solid?", 1, Q),
        ("你好", 0, Q),
        ("请描述乳腺囊肿。", 0, Q),  # without a picture there is nothing to describe
    ],
)
def test_the_task_is_that_of_the_questions_form(question: str, pictures: int, task: RowTask) -> None:
    assert task_of(question, pictures) is task


@pytest.mark.parametrize(
    ("question", "reference", "region"),
    [
        ("请描述", "左侧乳腺见低回声结节", "breast"),
        ("Is the thyroid enlarged?", "The left breast is normal.", "thyroid"),  # the question goes first
        ("描述", "甲状腺右叶结节，甲状腺左叶正常，颈动脉未见斑块", "thyroid"),  # the one named most
        ("描述", "肝实质回声均匀", "liver"),
        ("描述", "右肾集合系统未见扩张", "kidney"),
        ("描述", "子宫肌壁低回声团", "gynecology"),
        ("描述", "左心室壁增厚，心包积液", "heart"),
        ("描述", "颈动脉内中膜增厚", "vessel"),
        ("Describe", "The portal vein of the liver is open.", "liver"),
        ("Describe", "A nodule.", UNKNOWN),
        ("描述", "肾上腺占位", UNKNOWN),  # the adrenal gland is no kidney
    ],
)
def test_the_region_is_the_one_that_is_named(question: str, reference: str, region: str) -> None:
    assert region_of(question, reference) == region


@pytest.mark.parametrize(
    ("question", "reference", "task", "language"),
    [
        ("Describe", "低回声结节，BI-RADS 4a", C, "zh"),
        ("请用英文描述", "A hypoechoic nodule.", C, "en"),
        ("一致吗？", "True", J, "zh"),
        ("Which one?", "A", H, "en"),
        ("5", "12", Q, UNKNOWN),
    ],
)
def test_the_language_is_that_of_the_answer(question: str, reference: str, task: RowTask, language: str) -> None:
    assert language_of(question, reference, task) == language
