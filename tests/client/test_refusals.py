"""What a client learns of a refusal: the server's reason decides which error it is, never a sentence's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.client.wire.refusals import error_of
from echovlm_edge.runtime.contracts import errors
from echovlm_edge.runtime.contracts.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotPossibleHere,
    ServerBusy,
    ServerUnavailable,
    Unauthenticated,
    UnusableNumbers,
    UserError,
)
from echovlm_edge.runtime.contracts.request import Event, GenerationRequest
from echovlm_edge.runtime.contracts.statuses import CODES, DETAILS, DOMAIN, REASONS, status_of
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine

RAISED: dict[type[UserError], tuple[UserError, type[UserError]]] = {
    InvalidInput: (InvalidInput("Words."), InvalidInput),
    errors.ImageTokensOutOfRange: (errors.ImageTokensOutOfRange("Words."), errors.ImageTokensOutOfRange),
    errors.UnusableForm: (errors.UnusableForm("Words."), errors.UnusableForm),
    NotPossibleHere: (NotPossibleHere("Words."), NotPossibleHere),
    NotFound: (NotFound("Words."), NotFound),
    errors.StudyReplaced: (errors.StudyReplaced("Words."), errors.StudyReplaced),
    errors.NotOffered: (errors.NotOffered("Words."), errors.NotOffered),
    Unauthenticated: (Unauthenticated("Words.", "token"), Unauthenticated),
    errors.Unavailable: (errors.Unavailable("Words."), ServerUnavailable),
    errors.Busy: (errors.Busy("Words.", 2.5), ServerBusy),
    UnusableNumbers: (UnusableNumbers(), UnusableNumbers),
}


class Refusing(DecodingEngine):
    """Refuses every question."""

    def __init__(self, error: UserError) -> None:
        super().__init__()
        self.error = error

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        raise self.error
        yield


def refusal(error: UserError) -> grpc.RpcError:
    """The error as a client's library sees it, from a real server."""
    server = ReportServer(Refusing(error), ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refused:
            list(report_pb2_grpc.ReportServiceStub(channel).AnswerQuestion(pb.AnswerQuestionRequest(question="Why?")))
    finally:
        server.stop()
    return refused.value


def test_every_kind_of_error_has_a_reason_of_its_own() -> None:
    assert set(REASONS) == set(CODES) == set(RAISED)
    assert len(set(REASONS.values())) == len(REASONS)


@pytest.mark.parametrize("kind", RAISED)
def test_the_reason_travels(kind: type[UserError]) -> None:
    raised, learned = RAISED[kind]
    refused = refusal(raised)
    details = {item.key: item.value for item in refused.trailing_metadata()}[DETAILS]
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (REASONS[kind], DOMAIN)
    assert (status.code, status.message) == (refused.code().value[0], str(raised))
    error = error_of(refused, "127.0.0.1:1")
    assert type(error) is learned
    assert str(error).startswith(str(raised))


def test_a_busy_server_says_when_to_ask_again() -> None:
    refused = refusal(errors.Busy("Full.", 2.5))
    status = status_pb2.Status.FromString({item.key: item.value for item in refused.trailing_metadata()}[DETAILS])
    delay = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(delay) and delay.retry_delay.ToTimedelta().total_seconds() == 2.5
    error = error_of(refused, "127.0.0.1:1")
    assert isinstance(error, ServerBusy) and error.retry_after == 2.5


def test_who_is_not_known_is_told_of_the_token_file() -> None:
    assert "--token-file" in str(error_of(refusal(Unauthenticated("Who?", "none")), "127.0.0.1:1"))


class Failure(grpc.RpcError):
    """A failed call, as the library raises it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._trailing


OLDER = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.FAILED_PRECONDITION: NotPossibleHere,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotOffered,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerBusy,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.INTERNAL: NotPossibleHere,
    grpc.StatusCode.UNKNOWN: NotPossibleHere,
}


@given(code=st.sampled_from(list(grpc.StatusCode)), words=st.text())
def test_without_a_reason_the_status_code_decides_whatever_the_words(code: grpc.StatusCode, words: str) -> None:
    error = error_of(Failure(code, words), "127.0.0.1:1")
    assert type(error) is OLDER.get(code, NotPossibleHere)


def test_an_older_server_says_its_delay_in_metadata_alone() -> None:
    error = error_of(
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "Full.", (("grpc-retry-pushback-ms", "1500"),)), "127.0.0.1:1"
    )
    assert isinstance(error, ServerBusy) and error.retry_after == 1.5


@given(details=st.binary(max_size=64))
def test_details_that_are_damaged_or_another_servers_are_left_aside(details: bytes) -> None:
    error = error_of(Failure(grpc.StatusCode.NOT_FOUND, "Words.", ((DETAILS, details),)), "127.0.0.1:1")
    assert type(error) is NotFound


def test_a_reason_that_this_client_does_not_know_falls_back_to_the_code() -> None:
    status = status_of(InvalidInput("Words."))
    packed = status_pb2.Status.FromString(dict(status.metadata)[DETAILS])
    packed.details[0].Pack(error_details_pb2.ErrorInfo(reason="TOO_BLUE", domain=DOMAIN))
    error = error_of(Failure(status.code, status.sentence, ((DETAILS, packed.SerializeToString()),)), "127.0.0.1:1")
    assert type(error) is InvalidInput
