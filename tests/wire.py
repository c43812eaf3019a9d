"""A client that speaks the daemon's messages by hand, to say what a good client never would."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

PROTOCOL = 8


class Wire:
    """One connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.settimeout(30)
        self._bytes = b""
        self.fds: list[int] = []

    def say(self, message: Any, fds: list[int] | None = None) -> None:
        """Sends a message as a frame."""
        body = json.dumps(message).encode()
        self.send(struct.pack("<I", len(body)) + body, fds)

    def send(self, raw: bytes, fds: list[int] | None = None) -> None:
        """Sends any bytes, with descriptors beside the first."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([raw], rights)
        if sent < len(raw):
            self.socket.sendall(raw[sent:])

    def _receive(self) -> bool:
        chunk, fds, _, _ = socket.recv_fds(self.socket, 1 << 16, 4)
        self.fds += fds
        self._bytes += chunk
        return bool(chunk)

    def hears(self, kind: str | None = None) -> dict[str, Any] | None:
        """The next message (of a kind); None at the end of the connection."""
        while True:
            while len(self._bytes) >= 4 and len(self._bytes) >= 4 + struct.unpack("<I", self._bytes[:4])[0]:
                length = struct.unpack("<I", self._bytes[:4])[0]
                message = json.loads(self._bytes[4 : 4 + length])
                self._bytes = self._bytes[4 + length :]
                if kind is None or message["say"] == kind:
                    return message
            try:
                if not self._receive():
                    return None
            except ConnectionResetError:
                return None

    def greets(self, protocol: int = PROTOCOL) -> Wire:
        """Says hello and expects a welcome."""
        self.say({"say": "hello", "protocol": protocol, "pid": os.getpid()})
        welcome = self.hears()
        assert welcome is not None and welcome["say"] == "welcome", welcome
        return self

    def attaches(self, pipeline: Any, **more: Any) -> dict[str, Any]:
        """Attaches and gives what the daemon told."""
        self.say({"say": "attach", "pipeline": pipeline, **more})
        attached = self.hears("attached")
        assert attached is not None
        return attached

    def refusal(self) -> dict[str, Any]:
        """What the daemon says before it ends the connection, which it then does."""
        refused = self.hears("refused")
        assert refused is not None, "the connection ended without a word"
        # Batches may still have been on their way.
        assert self.hears("anything else") is None
        return refused

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()
        for fd in self.fds:
            os.close(fd)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
