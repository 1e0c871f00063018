"""Which replica a call goes to: a study's calls to the one that holds the study, all others to the less loaded of two."""

from __future__ import annotations

import pickle
import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SEPARATOR = "."  # between a replica's name and the rest of a study's id; in neither of them


class StudyRouter(RequestRouter):
    """Ray Serve's router of this service; it lives in every node's proxy."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to ask, of which Ray Serve takes the one with the shorter queue.

        A study whose replica is gone goes to any other, which says that there is no such study.
        """
        if pending_request is None:
            return [candidate_replicas]
        home = study_of(pending_request).partition(SEPARATOR)[0]
        holding = [replica for replica in candidate_replicas if replica.replica_id.unique_id == home]
        if holding:
            pending_request.routing_context.should_backoff = True  # while it is full, there is nobody else to ask
            return [holding]
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


def study_of(pending: PendingRequest) -> str:
    """The study that a call names, or an empty text."""
    (message,) = pending.args
    if isinstance(message, bytes):  # as the proxy has packed it for the replica
        message = getattr(pickle.loads(message), "user_request_proto", None)  # none of a stream of messages
    return str(getattr(message, "study", ""))
