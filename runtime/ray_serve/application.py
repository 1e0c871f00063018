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

from echovlm_edge.runtime.bundle.context import SLOTS
from echovlm_edge.runtime.ray_serve.ingress import add_report_service
from echovlm_edge.runtime.ray_serve.replica import ReportReplica
from echovlm_edge.runtime.ray_serve.routing import StudyRouter
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings, as_environment

NAME = "echovlm"


@dataclass(frozen=True)
class Replicas:
    """How many engines there are, and what each takes.

    Attributes:
        fewest: how many there always are.
        most: how many there are under load.
        cpus: cores of a node for each; also the engine's threads if the options do not set them.
        gpus: GPUs of a node for each.
    """

    fewest: int = 1
    most: int = 1
    cpus: int = 2
    gpus: float = 0.0


def start(settings: ServeSettings, replicas: Replicas, plain_port: int) -> None:
    """Start the application on the cluster that Ray is connected to, or update it; returns once every replica serves.

    Calls wait in a replica, whose limits apply: `slots` run and `queue` wait. If all replicas are full, up to `queue` calls wait in
    each proxy, and further ones are refused. A replica is added while each has more than `slots` calls on average. One is removed
    after this has not been so for as long as a study may be unused, because its studies are lost with it.

    Args:
        settings: the options of every replica; the files they name must be on every node.
        replicas: how many there are, and what each takes.
        plain_port: Ray Serve's own port without TLS, on every address of every node.

    Raises:
        RuntimeError: from Ray Serve, if no replica starts; its log says why.
    """
    serve.start(
        proxy_location=ProxyLocation.EveryNode,
        http_options=HTTPOptions(host="127.0.0.1"),  # serves /-/healthz only
        grpc_options=gRPCOptions(
            port=plain_port, grpc_servicer_functions=[f"{add_report_service.__module__}.{add_report_service.__name__}"]
        ),
        # Proxies inherit the controller's environment, which tells them where the certificates are.
        controller_options=ControllerOptions(runtime_env={"env_vars": as_environment(settings)}),
    )
    serve.run(_application(settings, replicas), name=NAME)


def _application(settings: ServeSettings, replicas: Replicas) -> serve.Application:
    threads, slots = settings.threads or replicas.cpus, settings.slots or SLOTS
    deployment = serve.deployment(
        name="reports",
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.fewest,
            max_replicas=replicas.most,
            target_ongoing_requests=slots,
            downscale_delay_s=60 * settings.study_minutes,
        ),
        max_ongoing_requests=slots + settings.queue,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.grace,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        request_router_config=RequestRouterConfig(request_router_class=StudyRouter),  # type: ignore[arg-type] # it is typed as the **kwargs
    )
    return deployment(ReportReplica).bind(settings.model_copy(update={"threads": threads}))
