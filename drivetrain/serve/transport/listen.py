"""Listening sockets: one for a process by itself, or one for each of several that share a port."""

import array
import contextlib
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

BACKLOG = 1024
"""Connections that the kernel holds for a process until it takes them."""
HANDSHAKE_SECONDS = 0.1
"""What a handshake may still take that had begun when :func:`hold_off` was called."""

# Options of <asm-generic/socket.h> that the socket module does not name.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_SO_ATTACH_REUSEPORT_CBPF, _SO_DETACH_REUSEPORT_BPF = 51, 68

# Classic BPF: (opcode, steps if true, steps if false, operand), of <linux/filter.h>.
_LOAD_BYTE, _LOAD_WORD, _AND, _MODULO, _IF_EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x94, 0x15, 0x06
_RANDOM = 0x1_0000_0000 - 0x1000 + 56
"""The address at which a program finds a random number (SKF_AD_OFF + SKF_AD_RANDOM)."""
_FLAGS, _SYN, _ACK = 13, 0x02, 0x10
"""The byte of a TCP header that holds its flags, and two of them (RFC 9293 §3.1)."""
_Step = tuple[int, int, int, int]


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
    that the port is taken. They listen in the order of their places in the list, which is how
    :func:`steer` knows them.

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
        for listener in shared[1:]:
            _listen(listener, host, port, BACKLOG)
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
        raise _named(error, host, port) from None
    return listener


def _listen(listener: socket.socket, host: str, port: int, backlog: int) -> None:
    try:
        listener.listen(backlog)
    except OSError as error:
        raise _named(error, host, port) from None


def _named(error: OSError, host: str, port: int) -> OSError:
    hint = ""
    if error.errno == errno.EADDRINUSE:
        hint = ": another process listens there. End it, or take another port (0 takes a free one)"
    elif error.errno == errno.EACCES:
        hint = ": ports below 1024 may need a privilege. Take a higher one"
    return OSError(error.errno, f"{host}:{port}: {error.strerror}{hint}")


def hold_off(listener: socket.socket) -> bool:
    """Let no new connection begin, while those that have begun to connect come through.

    Linux resets what is in a listener's queue when it ends, and what completes its handshake
    after the queue was emptied. So the first packet of further handshakes is dropped by a filter
    on the socket, which sees no other process' traffic and needs no privilege. After
    :data:`HANDSHAKE_SECONDS` the queue can be emptied and the listener ended with nobody in it.
    A client whose packet was dropped sends it again, after a second as a rule, and is then refused
    or taken by another process.

    Returns:
        Whether the platform does that.
    """
    program: list[_Step] = [
        (_LOAD_BYTE, 0, 0, _FLAGS),
        (_AND, 0, 0, _SYN | _ACK),
        (_IF_EQUAL, 0, 1, _SYN),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFF_FFFF),
    ]
    return _attach(listener, _SO_ATTACH_FILTER, program)


def let_in(listener: socket.socket) -> None:
    """Undo :func:`hold_off`."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # there was none
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def steer(listener: socket.socket, places: Sequence[int]) -> bool:
    """Give new connections to some of the sockets that share a port, evenly.

    Args:
        listener: any of them.
        places: which ones, by their places in what :func:`bind_shared` gave, as long as none of
            those has ended; empty gives to all, as the kernel does by itself.

    Returns:
        Whether the platform does that.
    """
    if not places:
        with contextlib.suppress(OSError):  # there was no program
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
        return True
    program: list[_Step] = [(_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, len(places))]
    for number, place in enumerate(places[1:], 1):
        program += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, place)]
    program.append((_RETURN, 0, 0, places[0]))
    return _attach(listener, _SO_ATTACH_REUSEPORT_CBPF, program)


def _attach(listener: socket.socket, option: int, program: Sequence[_Step]) -> bool:
    if sys.platform != "linux":
        return False
    code = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in program))
    try:
        pointer = struct.pack("@HP", len(program), code.buffer_info()[0])
        listener.setsockopt(socket.SOL_SOCKET, option, pointer)
    except OSError:  # an emulated kernel, such as of some sandboxes
        return False
    return True


def silence(listener: socket.socket) -> list[socket.socket]:
    """End a listener for every process that holds it; gives the connections that it still had.

    The queue is emptied first, and the end follows in the same breath: unless :func:`hold_off`
    came before, a handshake that completes within those microseconds is reset. Of sockets that
    share a port the others take what comes then; a socket that was silenced can listen again.
    """
    taken = take(listener)
    # One that does not listen would keep the mark of a shutdown: should it listen again, every
    # connection that it takes would be shut from its first byte.
    if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.shutdown(socket.SHUT_RDWR)
    return taken


def take(listener: socket.socket) -> list[socket.socket]:
    """The connections that wait in a listener's queue."""
    taken: list[socket.socket] = []
    while True:
        try:
            taken.append(listener.accept()[0])
        except ConnectionAbortedError:
            continue
        except OSError:  # BlockingIOError: empty; another: it has ended already
            return taken
