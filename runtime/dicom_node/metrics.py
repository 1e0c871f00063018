"""The node's Prometheus metrics: instances received, studies by state, documents owed and delivered, the spool's size."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from echovlm_edge.runtime.dicom_node.node import Node, parse_address
from echovlm_edge.runtime.dicom_node.spool.states import StudyState
from echovlm_edge.runtime.observability.metrics_server import MetricsServer


class NodeMetrics:
    """Reads the node when it is scraped."""

    def __init__(self, node: Node) -> None:
        """Read `node`."""
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """Read the current values."""
        node = self._node
        received = CounterMetricFamily("echovlm_dicom_instances", "Instances sent to the node.", labels=["outcome"])
        for outcome, count in node.receiver.counts.items():
            received.add_metric([outcome], count)
        yield received
        sent = CounterMetricFamily("echovlm_dicom_attempts", "Attempts to deliver a document.", labels=["outcome"])
        for outcome, count in node.delivering.counts.items():
            sent.add_metric([outcome], count)
        yield sent
        studies = GaugeMetricFamily("echovlm_dicom_studies", "Studies in the spool.", labels=["state"])
        for state in StudyState:
            studies.add_metric([state.value], len(node.spool.studies.in_states(state)))
        yield studies
        owed = node.spool.deliveries.owed()
        yield GaugeMetricFamily("echovlm_dicom_owed", "Documents that are owed.", len(owed))
        waits = [
            time.time() - study.changed
            for study in node.spool.studies.in_states(StudyState.COMPLETE, StudyState.REPORTED)
        ]
        yield GaugeMetricFamily(
            "echovlm_dicom_oldest_owed_seconds", "Since the oldest owed report was due.", max([0.0, *waits])
        )
        yield GaugeMetricFamily("echovlm_dicom_spool_bytes", "Bytes of the spool.", node.spool.arrivals.used_bytes())
        yield GaugeMetricFamily(
            "echovlm_dicom_disk_free_bytes", "Free bytes of its disk.", node.spool.arrivals.free_bytes()
        )
        yield GaugeMetricFamily("echovlm_dicom_associations", "Open associations.", node.listener.associations)
        yield CounterMetricFamily(
            "echovlm_dicom_server_faults", "Calls that the server did not answer.", node.working.server_faults
        )


def serve_metrics(address: str, node: Node) -> MetricsServer:
    """Serve the metrics.

    Raises:
        InvalidInput: the address is not HOST:PORT.
        NotPossibleHere: it cannot be used.
    """
    registry = CollectorRegistry()
    registry.register(NodeMetrics(node))
    server = MetricsServer(*parse_address(address), registry)
    server.start()
    return server
