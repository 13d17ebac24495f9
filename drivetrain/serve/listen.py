"""Listening sockets: one for a process by itself, or one for each of several that share a port."""

import contextlib
import ipaddress
import socket

BACKLOG = 1024
"""Connections that the kernel holds for a process until it takes them."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Raises:
        OSError: the address is taken, or is none of this machine; names it.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return _bind(found, host, port, share=False)


def bind_shared(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that share a port; the kernel spreads connections over those that listen.

    With SO_REUSEPORT alone a second server of the same user could join the port unasked. So the
    port is first claimed by a socket without it, and the first of the others listens before that
    one is closed: from then on whoever binds without SO_REUSEPORT, as every claim does, is told
    that the port is taken.

    Raises:
        OSError: the address is taken, or is none of this machine; names it.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    shared: list[socket.socket] = []
    try:
        with _bind(found, host, port, share=False) as claim:
            _listen(claim, host, port, 1)
            port = claim.getsockname()[1]
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            address = (found[4][0], port, *found[4][2:])
            while len(shared) < count:
                shared.append(_bind((*found[:4], address), host, port, share=True))
            _listen(shared[0], host, port, BACKLOG)
    except OSError:
        for listener in shared:
            listener.close()
        raise
    return shared


def _bind(found: tuple, host: str, port: int, *, share: bool) -> socket.socket:
    family, kind, protocol, _, address = found
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None
    return listener


def _listen(listener: socket.socket, host: str, port: int, backlog: int) -> None:
    try:
        listener.listen(backlog)
    except OSError as error:
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from None


def silence(listener: socket.socket) -> list[socket.socket]:
    """End a listener for every process that holds it; gives the connections that it still had.

    Linux resets what is in a listener's queue when it ends. So the queue is emptied first, and
    the end follows in the same breath: only a handshake that completes within those microseconds
    is lost. Of sockets that share a port the others take what comes then; a socket that was
    silenced can listen again.
    """
    taken: list[socket.socket] = []
    while True:
        try:
            taken.append(listener.accept()[0])
        except ConnectionAbortedError:
            continue
        except OSError:  # BlockingIOError: empty; another: it has ended already
            break
    with contextlib.suppress(OSError):  # it has not listened yet
        listener.shutdown(socket.SHUT_RDWR)
    return taken
