"""Make a question without images, and get the result of any call."""

from __future__ import annotations

from collections.abc import Iterator

from echovlm.v1 import report_pb2 as pb


def question(tokens: int, text: str = "Why?") -> pb.AnswerQuestionRequest:
    options = pb.GenerationOptions(include_token_ids=True, sampling=pb.Sampling(max_new_tokens=tokens))
    return pb.AnswerQuestionRequest(question=text, options=options)


def result(events: Iterator[pb.GenerateEvent]) -> pb.Result:
    *_, last = events
    return last.result
