"""Texts of a fixed length are for measuring: the operator's option, never a client's."""

from __future__ import annotations

from pathlib import Path

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from tests.support.questions import question, result
from tests.support.server_process import server_process

TOKENS = 5
OLD_FIELD = b"\x38\x01"  # field 7 of Sampling, ignore_stop, as clients could once send it: true


def test_a_server_that_is_measured_writes_to_the_full_length_and_says_so(brief_bundle: Path, tmp_path: Path) -> None:
    with (
        server_process(brief_bundle, tmp_path, "--debug-ignore-stop") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        written = result(report_pb2_grpc.ReportServiceStub(channel).AnswerQuestion(question(TOKENS)))
        assert written.usage.generated_tokens == TOKENS
        assert written.finish_reason == pb.FINISH_REASON_LENGTH
        assert "--debug-ignore-stop is for measuring only" in server.said
        server.stop()


def test_a_client_cannot_ask_for_it(brief_bundle: Path, tmp_path: Path) -> None:
    """The field is reserved; of a client that still sends it nothing is refused, and its text ends where the model ends it."""
    reserved = pb.Sampling()
    reserved.MergeFromString(OLD_FIELD)
    assert not reserved.ListFields()
    asked = question(TOKENS)
    asked.options.sampling.MergeFromString(OLD_FIELD)
    with server_process(brief_bundle, tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        written = result(report_pb2_grpc.ReportServiceStub(channel).AnswerQuestion(asked))
        assert written.usage.generated_tokens == 1 and written.finish_reason == pb.FINISH_REASON_STOP
        server.stop()
