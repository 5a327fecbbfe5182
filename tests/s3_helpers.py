"""A real S3 server on loopback, behind a gate that can be shut, or fall shut in the middle of an upload."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from trm_ray.storage import as_path

BUCKET = "bucket"


class Gate:
    """Pass connections on to a server, until it is shut: then they are refused, and those that are open are cut."""

    def __init__(self, target: tuple[str, int]):
        self._target, self._port = target, 0
        self._open: set[socket.socket] = set()
        self._bytes_left: int | None = None
        self._is_open = False
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        self._bytes_left = None
        if self._is_open:
            return
        self._is_open, self._listener = True, socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        self._is_open = False
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
            one.close()
        self._open.clear()

    def shut_after(self, num_bytes: int) -> None:
        """Fall shut once clients have sent so much more."""
        self._bytes_left = num_bytes

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
                self._open |= {client, server}
                for source, sink, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=(source, sink, counted), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if counted and self._bytes_left is not None:
                    self._bytes_left -= len(content)
                    if self._bytes_left < 0:
                        self.shut()
                        return
                sink.sendall(content)
        for one in (source, sink):
            one.close()
            self._open.discard(one)


@contextmanager
def s3_server() -> Iterator[Gate]:
    """Start a server with an empty bucket, and put its address into the environment, which Ray workers inherit."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    gate = Gate(server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-in-any-file")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", gate.url)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own attempts only take time here
        as_path(f"s3://{BUCKET}").filesystem.mkdir(BUCKET)
        yield gate
    gate.shut()
    server.stop()
