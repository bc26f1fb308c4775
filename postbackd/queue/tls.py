# SPDX-License-Identifier: MIT
"""TLS to the queue's servers: redis-py's connection with a context that is made once.

redis-py makes one for each connection and fills it with the system's authorities, also where queue.url names another:
260 ms each time, which is what a failover lasts for a process with a few connections. And whom it names is the only one
to be trusted then.
"""

import functools
import os
import socket
import ssl
from typing import Any

from redis.connection import SSLConnection


class TlsConnection(SSLConnection):
    """A connection over TLS."""

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        """Called by redis-py's connect."""
        files = (self.ca_certs, self.ca_path, self.certfile, self.keyfile)
        changed = tuple(os.stat(path).st_mtime_ns if path else 0 for path in files)  # a renewed certificate is taken up
        context = _context(
            files, changed, self.cert_reqs, self.check_hostname, self.certificate_password, self.ssl_ciphers
        )
        return context.wrap_socket(sock, server_hostname=self.host)


@functools.lru_cache(maxsize=4)
def _context(
    files: tuple[str | None, ...],
    _changed: tuple[int, ...],
    cert_reqs: Any,
    check_hostname: bool,
    password: str | None,
    ciphers: str | None,
) -> ssl.SSLContext:
    ca_certs, ca_path, certfile, keyfile = files
    if ca_certs or ca_path:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca_certs, ca_path)
    else:
        context = ssl.create_default_context()
    context.check_hostname = check_hostname
    context.verify_mode = cert_reqs
    if certfile:
        context.load_cert_chain(certfile, keyfile, password)
    if ciphers:
        context.set_ciphers(ciphers)
    return context
