"""`/v1/chat/completions`: messages to a question of the service, and its events to one answer or a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.http.chat.answer import DONE, ChatAnswer
from echovlm_edge.runtime.serving.http.chat.json_body import read_json
from echovlm_edge.runtime.serving.http.chat.request import ChatRequest, chat_request
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange
from echovlm_edge.runtime.serving.http.exchange.http_calls import ACCEPTED, HttpCalls
from echovlm_edge.runtime.serving.http.exchange.never import check_choices, check_tokens
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused
from echovlm_edge.runtime.serving.http.exchange.silences import ALIVE, ALIVE_SECONDS
from echovlm_edge.runtime.serving.http.state.models import check_model

METHOD = "AnswerQuestion"


@dataclass(frozen=True)
class _Ended:
    """A choice has ended; `failed` if not with a result."""

    failed: Exception | None = None


class ChatCompletions:
    """Answers chat completions. Each choice is a call of its own: it is admitted, counted and logged as one."""

    def __init__(self, calls: HttpCalls) -> None:
        """Answer by the service of `calls`."""
        self._calls = calls

    async def complete(self, exchange: Exchange) -> None:
        """Answer `POST /v1/chat/completions`."""
        async with self._calls.call(METHOD, exchange) as call:
            if exchange.header("content-type").partition(";")[0].strip().lower() != "application/json":
                raise Refused(
                    "The body must be JSON: send Content-Type: application/json.", "wrong_content_type", status=415
                )
            asked = await self._calls.request(exchange, call.client, lambda body: chat_request(read_json(body)))
            model = self._calls.service.model
            check_model(asked.model, model)
            self._check_possible(asked, call.client)
            with_tokens = asked.question.options.HasField("log_probabilities")
            answer = ChatAnswer(model, call.id, asked.with_usage, with_tokens)
            others = [self._calls.record(METHOD, call.client, exchange) for _ in range(1, asked.choices)]
            async with exchange.watched([one.gone for one in (call, *others)]):
                results = await self._results(asked, answer, [call, *others], exchange)
            if any(result.finish_reason == pb.FINISH_REASON_CANCELLED for result in results.values()):
                return  # nobody is there
            if asked.stream:
                await exchange.put(answer.tokens(results) + DONE)
                await exchange.end()
            else:
                await exchange.answer(answer.completion(results))

    def _check_possible(self, asked: ChatRequest, client: Client) -> None:
        service, options = self._calls.service, asked.question.options
        batch = options.priority == pb.PRIORITY_BATCH
        check_choices(asked.choices, service.admission, client, asked.question.ByteSize(), batch)
        check_tokens(asked.tokens_field, options.sampling.max_new_tokens, service.context)

    async def _results(
        self, asked: ChatRequest, answer: ChatAnswer, calls: list[CallRecord], exchange: Exchange
    ) -> dict[int, pb.Result]:
        """Wait for the results of all choices, and stream what comes before them if a stream is asked for."""
        results: dict[int, pb.Result] = {}
        async with aclosing(self._events(asked, calls)) as events:
            async for choice, event in events:
                if event and event.HasField("result"):
                    results[choice] = event.result
                if not asked.stream:
                    continue
                if event is None or not event.HasField("stage_started") or event.stage_started in ACCEPTED:
                    await exchange.begin()
                if piece := ALIVE if event is None else answer.chunks(choice, event):
                    await exchange.put(piece)
        return results

    async def _events(
        self, asked: ChatRequest, calls: list[CallRecord]
    ) -> AsyncGenerator[tuple[int, pb.GenerateEvent | None]]:
        """Yield the events of all choices, each with its number, and None where none comes for a while.

        The others begin once the first has text: then its prompt is cached, and is read once for all.
        """
        happened: asyncio.Queue[tuple[int, pb.GenerateEvent | _Ended]] = asyncio.Queue()
        running = [asyncio.ensure_future(self._run(asked, 0, calls[0], happened))]
        ended = set[int]()
        try:
            while len(ended) < len(calls):
                try:
                    choice, event = await asyncio.wait_for(happened.get(), ALIVE_SECONDS)
                except TimeoutError:
                    yield 0, None
                    continue
                if isinstance(event, _Ended):
                    ended.add(choice)
                    if event.failed:
                        raise event.failed
                else:
                    yield choice, event
                if len(running) == 1 and (isinstance(event, _Ended) or event.HasField("text")):
                    running += [
                        asyncio.ensure_future(self._run(asked, number, call, happened))
                        for number, call in enumerate(calls[1:], 1)
                    ]
        finally:
            for choice, call in enumerate(calls):
                if choice not in ended:  # the request failed, or nobody waits for it
                    call.gone.set()
            for run in running:
                run.cancel()

    async def _run(
        self,
        asked: ChatRequest,
        choice: int,
        call: CallRecord,
        happened: asyncio.Queue[tuple[int, pb.GenerateEvent | _Ended]],
    ) -> None:
        """Run one choice's call, and put what happens into a queue."""
        failed: Exception | None = None
        try:
            answer = partial(self._calls.service.answer_question, asked.question, call, asked.stop, choice)
            async for event in self._calls.messages(answer, call):
                happened.put_nowait((choice, event))
        except Exception as error:
            failed = error
        finally:
            if choice:  # the first one's record is the request's
                call.end()
        happened.put_nowait((choice, _Ended(failed)))
