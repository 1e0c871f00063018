"""Refuse at once what this server can never do, however idle it is: the sentence names the most that it can."""

from __future__ import annotations

from echovlm_edge.runtime.serving.access.admission import Admission
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused


def check_choices(choices: int, admission: Admission, client: Client, request_bytes: int, batch: bool) -> None:
    """Refuse more choices of one request than can have places at once.

    Raises:
        Refused: there are more.
    """
    most = admission.most_at_once(client, request_bytes, batch)
    if choices > most:
        raise Refused(
            f"n is {choices}, and {most} of your{' batch' if batch else ''} calls with such a request can be in progress at once, of which "
            "each choice is one: ask for fewer.",
            param="n",
        )


def check_tokens(name: str, asked: int | None, context: int) -> None:
    """Refuse more tokens of an answer than the context has.

    Raises:
        Refused: the field `name` asks for more.
    """
    if asked is not None and asked > context:
        raise Refused(
            f"{name} is {asked:,}, and prompt and answer have {context:,} tokens together: ask for fewer.", param=name
        )
