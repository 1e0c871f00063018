"""Events of a generation as OpenAI's chat completions and their chunks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.result_json import choice_json
from echovlm_edge.runtime.serving.http.exchange.exchange import as_json

FINISH = {pb.FINISH_REASON_LENGTH: "length"}  # any other: stop
DONE = b"data: [DONE]\n\n"
IMPOSSIBLE = -9999.0  # as OpenAI's API writes the logarithm of 0, which JSON has no number for


class ChatAnswer:
    """The answer to one request, of some choices; `model` wrote it, `request_id` names it in the server's log."""

    def __init__(self, model: str, request_id: str, with_usage: bool, with_tokens: bool = False) -> None:
        """Answer now; `with_tokens` if it says how likely they were."""
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}
        self._with_usage, self._with_tokens, self._begun = with_usage, with_tokens, set[int]()

    def completion(self, results: Mapping[int, pb.Result]) -> bytes:
        """Return the whole answer; `results` are those of the choices by their number."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": self._logprobs(result.tokens),
                **_end(result),
            }
            for number, result in sorted(results.items())
        ]
        body = {"object": "chat.completion", "choices": choices, "usage": usage(results)}
        return as_json({**self._head, **body, "system_fingerprint": results[0].bundle_id})

    def chunks(self, choice: int, event: pb.GenerateEvent) -> bytes:
        """Return the chunks of an event of a choice: pieces of text, the first with the role, and what ends it."""
        if event.HasField("stage_started"):
            return b""
        chunks = b""
        if choice not in self._begun:
            self._begun.add(choice)
            chunks = self._chunk([_choice(choice, {"role": "assistant", "content": ""})])
        if event.HasField("text"):
            written = _choice(choice, {"content": event.text})
            return chunks + self._chunk([{**written, "logprobs": self._logprobs(event.tokens)}])
        return chunks + self._chunk([{**_choice(choice, {}), **_end(event.result)}])

    def _logprobs(self, tokens: Sequence[pb.TokenProbability]) -> dict[str, Any] | None:
        """Describe a text's tokens; those without text, as what ends it, are no part of it."""
        if not self._with_tokens:
            return None
        content = [
            {**_token(one), "top_logprobs": [_token(other) for other in one.alternatives]}
            for one in tokens
            if one.bytes
        ]
        return {"content": content, "refusal": None}

    def tokens(self, results: Mapping[int, pb.Result]) -> bytes:
        """Return the chunk with the tokens' numbers, if it is wanted."""
        return self._chunk([], usage(results)) if self._with_usage else b""

    def _chunk(self, choices: list[dict[str, Any]], tokens: dict[str, Any] | None = None) -> bytes:
        last = {"usage": tokens} if self._with_usage else {}
        return (
            b"data: " + as_json({**self._head, "object": "chat.completion.chunk", "choices": choices, **last}) + b"\n\n"
        )


def usage(results: Mapping[int, pb.Result]) -> dict[str, Any]:
    """Count the tokens: the prompt's once, those that were written in all choices."""
    of_prompt, written = results[0].usage, sum(result.usage.generated_tokens for result in results.values())
    return {
        "prompt_tokens": of_prompt.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": of_prompt.prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": of_prompt.reused_tokens, "image_tokens": of_prompt.image_tokens},
    }


def _choice(number: int, delta: dict[str, str]) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}


def _token(one: pb.TokenProbability) -> dict[str, Any]:
    return {"token": one.text, "logprob": max(one.log_probability, IMPOSSIBLE), "bytes": list(one.bytes)}


def _end(result: pb.Result) -> dict[str, Any]:
    """Say why a text ended, and what must be shown wherever it is."""
    more: dict[str, Any] = {"notice": result.notice, "notes": list(result.notes), "bundle_id": result.bundle_id}
    if result.choices:
        more["choices"] = list(map(choice_json, result.choices))
    return {"finish_reason": FINISH.get(result.finish_reason, "stop"), "echovlm": more}
