"""Choose the replica of a call: calls about a study go to the replica that has it, others to the less loaded of two."""

from __future__ import annotations

import pickle
import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

SEPARATOR = "."  # between a replica's name and the rest of a study's id; neither contains it


class StudyRouter(RequestRouter):
    """The router of this service; each node's proxy has one."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the candidates, of which Ray Serve takes the one with the shorter queue.

        If a study's replica is gone, its calls go to any other one, which answers that there is no such study.
        """
        if pending_request is None:
            return [candidate_replicas]
        home = study_of(pending_request).partition(SEPARATOR)[0]
        holding = [replica for replica in candidate_replicas if replica.replica_id.unique_id == home]
        if holding:
            pending_request.routing_context.should_backoff = (
                True  # no other replica has the study, so wait while this one is full
            )
            return [holding]
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


def study_of(pending: PendingRequest) -> str:
    """Return the id of the study that a call names, or an empty string."""
    (message,) = pending.args
    if isinstance(message, bytes):  # pickled by the proxy for the replica
        message = getattr(pickle.loads(message), "user_request_proto", None)  # a stream of messages has none
    return str(getattr(message, "study", ""))
