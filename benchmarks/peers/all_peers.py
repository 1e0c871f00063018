"""List the peers: ours first, which all others are compared with."""

from __future__ import annotations

from benchmarks.peers.llama import Llama
from benchmarks.peers.openvino import OpenVino
from benchmarks.peers.ours import Ours
from benchmarks.peers.peer import Peer

PEERS: tuple[Peer, ...] = (
    Ours(),
    Ours(32),  # as many bits a weight as Q4_0 and Q4_K
    Llama("Q4_0", "f16"),
    Llama("Q4_K_M", "f16"),
    OpenVino(),
)


def peer_named(name: str) -> Peer:
    """Return the peer of that name."""
    return next(peer for peer in PEERS if peer.name == name)
