"""The real chunk server engine with the interface that MiniMds wants of FakeCs."""

from __future__ import annotations

from typing import Any, Self

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError
from vstor.proto.tickets import session_key

from tests.helpers.dataclient import CsServer


class RealCs:
    """Restartable: each start is a new incarnation, on another port. Use as a context manager."""

    def __init__(self, directory: str, cs_id: int, **config: Any) -> None:
        self.directory, self.cs_id, self._config = directory, cs_id, config
        self.incarnation = cs_id * 1000
        self.server: CsServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.incarnation += 1
        self.server = CsServer(self.directory, cs_id=self.cs_id, incarnation=self.incarnation, **self._config)
        self.server.__enter__()

    def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    @property
    def running(self) -> CsServer:
        assert self.server is not None, "stopped"
        return self.server

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.port}"

    def key_for(self, session_id: int, expiry_ms: int) -> bytes:
        return session_key(self.running.cs_key, session_id, expiry_ms)

    def set_version(self, chunk_id: int, version: int) -> None:
        try:
            self.running.engine.set_version(chunk_id, version)
        except VstorError as exc:
            if exc.code != ErrorCode.NO_CHUNK:  # never opened there: the ticket will create it
                raise

    def data(self, chunk_id: int, offset: int, length: int) -> bytes:
        """Offset and length in whole blocks."""
        found = self.running.engine.read(chunk_id, offset, length)
        return bytes(length) if found is None else found
