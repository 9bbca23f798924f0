"""Refuse every connection off this machine, and write it down.

The simulation of a kernel copies this file into its interpreter, where each Python that starts
imports it first. An attempt raises OSError, as on a machine without a network, and stays in the
log even where the program catches that error.
"""

from __future__ import annotations

import _socket  # the built-in half of `socket`: starting Python stays quick
import errno
import os
import sys

LOG_NAME = "network-attempts.log"  # in the interpreter's folder
DEAD_PORT = 9  # of the proxy that other programs are sent to where no namespace holds them
_TALKS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_ASKS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def is_local(host: object, port: object = None) -> bool:
    """Whether a host (name, address, or nothing at all) and port lie on this machine."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name and not (
        name in ("localhost", "0.0.0.0", "::", "::1", _socket.gethostname())
        or str(name).removeprefix("::ffff:").startswith("127.")
    ):
        return False
    return port != DEAD_PORT


def refuse(event: str, arguments: tuple) -> None:
    """Audit hook: record and refuse what would leave the machine."""
    if event in _TALKS:
        socket, address = arguments
        if socket.family not in (_socket.AF_INET, _socket.AF_INET6) or address is None:
            return
        host, port = address[:2]
    elif event in _ASKS:
        host, port = arguments[0], None
    else:
        return
    if is_local(host, port):
        return
    what = f"{event} {host!r}" + (f" port {port}" if port is not None else "")
    with open(os.path.join(sys.prefix, LOG_NAME), "a", encoding="utf-8") as log:
        log.write(f"{what}\n")
    raise OSError(errno.ENETUNREACH, f"a kernel without internet has no network: {what}")


if __name__ == "unplugged":  # the copy; in the package this is a module like others
    sys.addaudithook(refuse)
