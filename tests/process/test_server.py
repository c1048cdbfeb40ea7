"""The listening socket, and the reason why it cannot be opened."""

import errno
import os
import socket
from typing import Any

import pytest

from service.exceptions import StartError
from service.process.server import listen, with_bound_port
from service.settings import load_settings


def test_machine_without_the_host_s_kind_of_network_is_not_reported_as_a_wrong_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: Any) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    reason = "^cannot listen on HOST 127.0.0.1, PORT 0: Address family not supported by protocol$"
    with pytest.raises(StartError, match=reason):
        listen("127.0.0.1", 0)


def test_name_server_that_does_not_respond_is_not_reported_as_a_wrong_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    reason = "^cannot listen on HOST app.example: Temporary failure in name resolution$"
    with pytest.raises(StartError, match=reason):
        listen("app.example", 0)


@pytest.mark.usefixtures("no_invalid_names")
@pytest.mark.parametrize("host", ["no such host", "nowhere.invalid", "a" * 70 + ".example"])
def test_host_that_does_not_exist_is_reported(host: str) -> None:
    with pytest.raises(StartError, match=f"^cannot listen on METRICS_HOST {host}: "):
        listen(host, 0, "METRICS_")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_links_lead_to_localhost_and_the_bound_port(host: str) -> None:
    settings = load_settings({"HOST": host, "PORT": "0"})
    with listen(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        bound = with_bound_port(settings, listener)
    assert bound.public_origin == f"http://localhost:{port}"
