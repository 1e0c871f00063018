"""What the demo model is trained to be asked: the product's own prompts, and paraphrases of every request."""

from __future__ import annotations

import enum

from echovlm_edge.runtime.contracts.tasks import Language

EN, ZH = Language.EN, Language.ZH


class Form(enum.Enum):
    """One form of request. The first eight are the product's tasks in its own prompts, the others are questions in a caller's words."""

    REPORT = "report"
    REPORT_OF_REGION = "report, --region"
    FINDINGS = "findings"
    FINDINGS_OF_REGION = "findings, --region"
    DIAGNOSIS = "diagnosis"
    DIAGNOSIS_OF_REGION = "diagnosis, --region"
    JUDGE = "judge"
    CHOICE = "choice"
    ASKED_REPORT = "report, own words"
    ASKED_FINDINGS = "findings only"
    ASKED_IMPRESSION = "impression only"
    CAPTION = "caption"
    ASKED_JUDGE = "judge, own words"
    ASKED_CHOICE = "choice, own words"
    RESTATED_CHOICE = "choice, restated"
    ORGAN = "organ?"
    SIDE = "side?"
    KIND = "finding?"
    ECHOGENICITY = "echogenicity?"
    SIZE = "size?"


# {statement}: of a finding and its place. {options}: four of them, by letter.
WORDINGS = {
    (Form.ASKED_REPORT, EN): (
        "Write a report.",
        "Please write an ultrasound report.",
        "Write an ultrasound report with findings and impression.",
        "Report these images, please.",
        "Could you report this ultrasound examination?",
        "Give me the full report in English.",
        "Draft a structured report of this study.",
    ),
    (Form.ASKED_REPORT, ZH): (
        "请写一份超声报告。",
        "请根据图像书写超声报告，包括超声所见和超声提示。",
        "请给出完整的超声报告",
        "写报告",
        "帮我写一份中文超声报告。",
        "请为这次检查出具报告。",
        "根据这些图像生成报告",
    ),
    (Form.ASKED_FINDINGS, EN): (
        "Describe the findings only.",
        "Give only the ultrasound findings, without an impression.",
        "Please describe the findings.",
        "What are the ultrasound findings?",
        "List the findings without a diagnosis.",
        "What do these images show?",
        "What do you see?",
    ),
    (Form.ASKED_FINDINGS, ZH): (
        "请只描述超声所见。",
        "只写超声所见，不要给出诊断。",
        "请描述超声所见",
        "超声所见是什么？",
        "这些图像显示了什么？",
        "图像中能看到什么？",
        "请给出超声描述，不需要结论。",
    ),
    (Form.ASKED_IMPRESSION, EN): (
        "What is your impression?",
        "Give only the impression.",
        "Please give the diagnosis only.",
        "Write the ultrasound impression, without findings.",
        "What is the diagnosis?",
        "Summarize this study in one line.",
        "Your conclusion, please.",
    ),
    (Form.ASKED_IMPRESSION, ZH): (
        "请只给出超声提示。",
        "超声诊断是什么？",
        "请直接给出诊断，不要描述所见。",
        "你的诊断意见是什么？",
        "只写结论。",
        "请给出诊断提示",
        "一句话总结这次检查。",
    ),
    (Form.CAPTION, EN): (
        "Describe this image.",
        "Please describe this ultrasound image.",
        "Write a caption for this image.",
        "Describe what this image shows, without a diagnosis.",
        "What does this image show?",
    ),
    (Form.CAPTION, ZH): (
        "请描述这张图像。",
        "描述这张超声图像。",
        "请为这张图像写一段描述，不要给出诊断。",
        "这张图像显示了什么？",
        "用中文描述这张图。",
    ),
    (Form.ASKED_JUDGE, EN): (
        "{statement} Is this right? Answer True or False.",
        "{statement} True or False?",
        "Does this match the images? {statement} Answer True or False only.",
        "Judge this statement: {statement} Reply True or False.",
    ),
    (Form.ASKED_JUDGE, ZH): (
        "{statement}这个描述正确吗？只回答True或False。",
        "{statement}对吗？请回答True或False。",
        "以下描述与图像一致吗？{statement}只需回答True或False。",
        "判断题：{statement}回答True或False。",
    ),
    (Form.ASKED_CHOICE, EN): (
        "Which option is right? {options} Answer with the letter only.",
        "Choose the option that matches the images. {options} Give the letter only.",
        "{options} Which one is correct? Only the letter.",
    ),
    (Form.ASKED_CHOICE, ZH): (
        "哪个选项正确？{options} 只回答字母。",
        "请选出与图像相符的选项。{options} 直接给出选项字母。",
        "{options} 哪一项正确？只写字母。",
    ),
    (Form.RESTATED_CHOICE, EN): (
        "Which option is right? {options} Repeat the option.",
        "Choose the option that matches the images. {options} Give the letter and repeat its text.",
        "{options} Which one is correct? Repeat it.",
    ),
    (Form.RESTATED_CHOICE, ZH): (
        "哪个选项正确？{options} 请复述该选项。",
        "请选出与图像相符的选项。{options} 给出字母并复述内容。",
        "{options} 哪一项正确？请复述。",
    ),
    (Form.ORGAN, EN): (
        "Which organ is shown?",
        "What organ is this?",
        "Which organ was examined?",
        "What part of the body is shown?",
        "Which region is this?",
        "Name the organ.",
    ),
    (Form.ORGAN, ZH): (
        "图像显示哪个器官？",
        "这是什么器官？",
        "检查的是哪个器官？",
        "这是哪个部位？",
        "检查部位是哪里？",
        "请说出器官名称。",
    ),
    (Form.SIDE, EN): (
        "Which side is shown?",
        "Is this the left or the right side?",
        "Left or right?",
        "Which side was examined?",
        "What side is it?",
    ),
    (Form.SIDE, ZH): (
        "图像显示哪一侧？",
        "这是左侧还是右侧？",
        "左侧还是右侧？",
        "检查的是哪一侧？",
        "是哪一侧？",
    ),
    (Form.KIND, EN): (
        "What is the finding?",
        "What kind of lesion is it?",
        "Is there a lesion, and what is it?",
        "What is abnormal here?",
        "Is anything abnormal?",
        "Name the finding.",
    ),
    (Form.KIND, ZH): (
        "病变是什么？",
        "这是什么病变？",
        "有没有病变？是什么？",
        "有什么异常？",
        "有异常吗？",
        "请说出病变名称。",
    ),
    (Form.ECHOGENICITY, EN): (
        "What is the echogenicity of the finding?",
        "How echogenic is the lesion?",
        "What is its echogenicity?",
        "Is the lesion hypoechoic or hyperechoic?",
    ),
    (Form.ECHOGENICITY, ZH): (
        "病变的回声如何？",
        "病变是什么回声？",
        "回声怎么样？",
        "病变是低回声还是高回声？",
    ),
    (Form.SIZE, EN): (
        "How large is the finding?",
        "How big is the lesion?",
        "What size is the lesion?",
        "What does the lesion measure?",
        "How many millimetres is it?",
    ),
    (Form.SIZE, ZH): (
        "病变有多大？",
        "病变大小是多少？",
        "病灶多大？",
        "病变测量多少毫米？",
        "大小是多少？",
    ),
}
