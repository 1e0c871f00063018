"""The Ray Serve application: how many replicas, what each takes of a node, how calls reach them."""

from __future__ import annotations

from dataclasses import dataclass

from ray import serve
from ray.serve.config import (
    AutoscalingConfig,
    ControllerOptions,
    HTTPOptions,
    ProxyLocation,
    RequestRouterConfig,
    gRPCOptions,
)

from echovlm_edge.runtime.ray_serve.ingress import add_report_service
from echovlm_edge.runtime.ray_serve.replica import ReportReplica
from echovlm_edge.runtime.ray_serve.routing import StudyRouter
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings, as_environment

NAME = "echovlm"


@dataclass(frozen=True)
class Replicas:
    """How many engines there are, and what each takes.

    Attributes:
        fewest: always there.
        most: while many wait.
        cpus: cores of a node that each has, and the engine's threads where the options do not say how many.
        gpus: of a node that each has.
    """

    fewest: int = 1
    most: int = 1
    cpus: int = 2
    gpus: float = 0.0


def start(settings: ServeSettings, replicas: Replicas, plain_port: int) -> None:
    """Start it on the cluster that Ray is connected to, or change the one that runs; returns once every replica serves.

    A call waits in its replica, so that the replica's limits hold for it: `slots` run and `queue` wait. What finds all replicas full
    waits in a proxy, `queue` calls in each, and more are refused there. New replicas come once more than `slots` calls are in each on
    average. One goes only after that was not so for as long as a study may rest: the studies it has go with it.

    Args:
        settings: of every replica; its files must be on every node.
        replicas: how many.
        plain_port: Ray Serve's own port, on every address of every node.

    Raises:
        RuntimeError: Ray Serve's, where no replica comes up; its log says why.
    """
    serve.start(
        proxy_location=ProxyLocation.EveryNode,
        http_options=HTTPOptions(host="127.0.0.1"),  # /-/healthz alone
        grpc_options=gRPCOptions(
            port=plain_port, grpc_servicer_functions=[f"{add_report_service.__module__}.{add_report_service.__name__}"]
        ),
        # Proxies inherit the controller's environment: where they find the certificates.
        controller_options=ControllerOptions(runtime_env={"env_vars": as_environment(settings)}),
    )
    serve.run(_application(settings, replicas), name=NAME)


def _application(settings: ServeSettings, replicas: Replicas) -> serve.Application:
    threads = settings.threads or replicas.cpus
    deployment = serve.deployment(
        name="reports",
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.fewest,
            max_replicas=replicas.most,
            target_ongoing_requests=settings.slots,
            downscale_delay_s=60 * settings.study_minutes,
        ),
        max_ongoing_requests=settings.slots + settings.queue,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.grace,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        request_router_config=RequestRouterConfig(request_router_class=StudyRouter),  # type: ignore[arg-type] # typed as its **kwargs
    )
    return deployment(ReportReplica).bind(settings.model_copy(update={"threads": threads}))
