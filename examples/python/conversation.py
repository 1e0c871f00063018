"""Write a report, let somebody correct it, and ask about it and about a further image: python conversation.py HOST:PORT FILE FILE."""

import sys

from echovlm_edge import ReportClient

address, first, second = sys.argv[1:]
with ReportClient(address) as client, client.study() as study:
    study.add(first)
    talk = study.conversation()
    report = talk.report()
    print(report.text, report.notice, *report.notes, sep="\n")
    talk.correct(input())  # what follows builds on the corrected report

    print(talk.ask("Is the margin smooth?").text)
    study.add(second)  # shown with the next question, after all that was said
    answer = talk.ask("And in this image?")
    print(answer.text)
    usage = answer.usage
    print(f"{usage.reused_tokens} of {usage.prompt_tokens} tokens were read before", file=sys.stderr)
