"""Both ends of a connection, and the two command line clients: Python's, and `ipcsrvc`, compiled with sanitizers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import native
import pytest

from ipcsrv.platform import client as platform
from ipcsrv.platform import server as serving
from ipcsrv.platform.client import Stream

PATIENCE = 20.0
Command = list[str]
Accept = Callable[[serving.Rendezvous], serving.AcceptedConnection]


@pytest.fixture(scope="session")
def sanitized_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of `ipcsrvc`."""
    return native.build_sanitized(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session", params=["python", "native"])
def client_command(request: pytest.FixtureRequest) -> Command:
    """The words that a client's command line begins with."""
    if request.param == "python":
        return [sys.executable, "-m", "ipcsrv"]
    return [str(request.getfixturevalue("sanitized_client"))]


@pytest.fixture
def rendezvous(sock_path: str) -> Iterator[serving.Rendezvous]:
    """A listening server without a client."""
    place = serving.Rendezvous(sock_path)
    place.claim({"pid": os.getpid()})
    place.listen()
    yield place
    place.close()


def accept(place: serving.Rendezvous) -> serving.AcceptedConnection:
    """Return the next client's connection, waited for."""
    with_poller = serving.poller()
    assert place.listener is not None
    with_poller.register(place.listener.fileno(), serving.READ)
    try:
        assert with_poller.poll(PATIENCE), "no client connected"
        return serving.adopt(place.accept())
    finally:
        with_poller.close()


@pytest.fixture
def accepted() -> Accept:
    """Accept the next client of a rendezvous."""
    return accept


@pytest.fixture
def pair(rendezvous: serving.Rendezvous) -> Iterator[tuple[Stream, serving.AcceptedConnection]]:
    """Both ends of a connection: the client's, the server's."""
    stream = platform.attempt(rendezvous.path)
    connection = accept(rendezvous)
    yield stream, connection
    stream.close()
    connection.close()
