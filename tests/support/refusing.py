"""A server that speaks enough of PostgreSQL's protocol to refuse a connection (manual, 55.2)."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator

_SSL_REQUEST = 80877103


@contextlib.contextmanager
def refusing(
    sqlstate: str, message: str = "no", *, tls: ssl.SSLContext | bytes | None = None
) -> Iterator[int]:
    """Refuse every connection with this error for the duration of the block; yields the port.

    With ``tls``, a client that requests TLS gets it, or these bytes instead of a handshake.
    Without it, the server declines TLS.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, sqlstate, message, tls))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(
    listener: socket.socket, sqlstate: str, message: str, tls: ssl.SSLContext | bytes | None
) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        # A client may disconnect at any moment.
        with connection, contextlib.suppress(OSError, struct.error):
            _refuse(connection, sqlstate, message, tls)


def _refuse(
    connection: socket.socket, sqlstate: str, message: str, tls: ssl.SSLContext | bytes | None
) -> None:
    whole = 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_WAITALL
    length, code = struct.unpack("!ii", connection.recv(8, whole))
    if code == _SSL_REQUEST:
        connection.sendall(b"N" if tls is None else b"S")
        if isinstance(tls, bytes):
            connection.recv(1)
            connection.sendall(tls)
            return
        if tls is not None:
            with tls.wrap_socket(connection, server_side=True) as encrypted:
                _refuse(encrypted, sqlstate, message, None)
            return
        length, code = struct.unpack("!ii", connection.recv(8))
    connection.recv(length - 8)
    fields = [f"S{'FATAL'}", f"V{'FATAL'}", f"C{sqlstate}", f"M{message}"]
    body = b"".join(field.encode() + b"\0" for field in fields) + b"\0"
    connection.sendall(b"E" + struct.pack("!i", len(body) + 4) + body)
