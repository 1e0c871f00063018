"""Loopback addresses, and addresses that look like loopback but are not."""

from __future__ import annotations

HERE = (
    *("localhost:50051", "127.0.0.1:50051", "127.8.9.10:1", "[::1]:50051", "::1", "127.0.0.1"),
    *("dns:127.0.0.1:1", "dns:///localhost:1", "ipv4:127.0.0.1:1", "ipv6:[::1]:1", "unix:/run/echovlm.sock"),
)
ELSEWHERE = (
    *("127.evil.example:50051", "127.0.0.1.evil.example:1", "localhost.evil.example:1", "evil.example:1", "box:1"),
    *("127.1:1", "127.0.0.256:1", "128.0.0.1:1", "0.0.0.0:1", "[::]:1", "[::ffff:10.0.0.1]:1", "::1:5005", "[::2]:1"),
    *("127.0.0.1@evil.example:1", "127.0.0.1:1@evil.example:1", "localhost:1@evil.example", "127.0.0.1:1/evil"),
    *(
        "dns:///127.evil.example:1",
        "dns://evil.example/127.0.0.1:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "xds:///127.0.0.1:1",
    ),
    *("http://127.0.0.1:1", "127.0.0.1:1 evil.example:1", "[::1]evil.example:1", "[127.0.0.1:1", "", ":50051"),
)
