"""Find out why a connection fails, which gRPC does not say, with one short connection of our own.

Each fault is one sentence with its fix. Only a handshake is sent. If gRPC uses a proxy, the cause stays unknown.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from contextlib import closing

from echovlm_edge.runtime.client.wire.credentials import Credentials
from echovlm_edge.runtime.contracts.addresses import is_loopback_target
from echovlm_edge.runtime.contracts.errors import ServerUnavailable

PROBE_SECONDS = 2.0  # each for connecting, for the handshake, and for the server's first bytes
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # the variables that gRPC obeys
_TARGET = re.compile(
    r"(?:dns:(?://[^/]*/)?|ipv4:|ipv6:)?(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:/\[\]]+)):(?P<port>\d{1,5})"
)
# The first bytes of an HTTP/2 client (RFC 9113 3.4), and an empty SETTINGS frame.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
# OpenSSL's X509_V_ERR numbers.
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST = 9, 10, (62, 64)


def connection_fault(address: str, credentials: Credentials) -> ServerUnavailable | None:
    """Connect to a gRPC address as a client with these credentials would; return None if nothing is wrong.

    It takes a few PROBE_SECONDS at most; a refused port is reported at once.
    """
    found = _TARGET.fullmatch(address)
    if not found or int(found["port"]) > 65535 or _is_proxied(address):
        return None
    host, port = found["ipv6"] or found["host"], int(found["port"])
    try:
        connection = socket.create_connection((host, port), PROBE_SECONDS)
    except socket.gaierror:
        return ServerUnavailable(f"The host {host} is not known: check the name in {address}, or give its IP address.")
    except ConnectionRefusedError:
        return ServerUnavailable(
            f"No server listens at {address}: start one with echovlm-serve, or check the port (--server HOST:PORT)."
        )
    except TimeoutError:
        return ServerUnavailable(
            f"{address} does not answer: check the address, and that the host is on and no firewall is between."
        )
    except OSError as error:
        return ServerUnavailable(f"{address} cannot be reached ({error.strerror}): check the address and the network.")
    with closing(connection):
        connection.settimeout(PROBE_SECONDS)
        if credentials.server_ca:
            return _fault_of_tls(connection, host, address, credentials)
        return _fault_of_plain_text(connection, address)


def _is_proxied(address: str) -> bool:
    """Tell whether gRPC may use a proxy, so that a direct connection would show something else."""
    return not is_loopback_target(address) and any(os.environ.get(name) for name in _PROXIES)


def _fault_of_plain_text(connection: socket.socket, address: str) -> ServerUnavailable | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection):
            pass
    except (OSError, ValueError):
        return None  # it does not speak TLS, as expected
    return ServerUnavailable(
        f"The server at {address} accepts only TLS: give the authority that signed its certificate (--tls-ca, ca= in Python)."
    )


def _fault_of_tls(
    connection: socket.socket, host: str, address: str, credentials: Credentials
) -> ServerUnavailable | None:
    context = ssl.create_default_context(cafile=credentials.server_ca)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # gRPC accepts certificates that the strict check refuses
    context.set_alpn_protocols(["h2"])
    if credentials.certificate:
        context.load_cert_chain(credentials.certificate, credentials.key)
    try:
        encrypted = context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return _fault_of_certificate(error, host, address, credentials)
    except ssl.SSLError as error:
        if error.reason and "ALERT" in error.reason:
            return _own_certificate(address, credentials)
        return _plain_server(address)
    except TimeoutError:
        return ServerUnavailable(f"The server at {address} does not answer a TLS handshake: check the port.")
    except OSError:  # closed at once, as by a plain-text server
        return _plain_server(address)
    with closing(encrypted):
        try:
            encrypted.sendall(_HTTP2_PREFACE)  # with TLS 1.3 the server checks the client's certificate only now
            answer = encrypted.recv(9)
        except TimeoutError:
            return None
        except OSError:
            answer = b""
    return None if answer else _own_certificate(address, credentials)


def _fault_of_certificate(
    error: ssl.SSLCertVerificationError, host: str, address: str, credentials: Credentials
) -> ServerUnavailable:
    match error.verify_code:
        case code if code in _OTHER_HOST:
            return ServerUnavailable(
                f"The certificate of the server at {address} is for another host than {host}: call it by a name that is "
                "in its certificate, or issue one for this name."
            )
        case code if code == _EXPIRED:
            return ServerUnavailable(f"The certificate of the server at {address} has expired: issue a new one there.")
        case code if code == _NOT_YET_VALID:
            return ServerUnavailable(
                f"The certificate of the server at {address} is not valid yet: check the clocks of both computers."
            )
    return ServerUnavailable(
        f"The certificate of the server at {address} is not signed by the authority in {credentials.server_ca}: give the "
        "file of the one that signed it (--tls-ca, ca= in Python)."
    )


def _plain_server(address: str) -> ServerUnavailable:
    return ServerUnavailable(
        f"What listens at {address} does not speak TLS: leave out --tls-ca (ca= in Python), or start the server with "
        "--tls-certificate and --tls-key."
    )


def _own_certificate(address: str, credentials: Credentials) -> ServerUnavailable:
    if credentials.certificate:
        return ServerUnavailable(
            f"The server at {address} does not take the client's certificate {credentials.certificate}: give one that is "
            "valid and signed by the authority that the server was started with."
        )
    return ServerUnavailable(
        f"The server at {address} asks for the client's own certificate: give --tls-certificate and --tls-key."
    )
