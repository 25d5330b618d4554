"""The API's time comes with any answer of it, and is this machine's where there is none."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from launch import clock
from launch.cloud.api_time import ADDRESS, api_now

DATES = {"right": "Tue, 24 Nov 2026 10:00:00 GMT", "none": None, "damaged": "yesterday"}


class Server(HTTPServer):
    date: str | None
    status: int


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        assert isinstance(self.server, Server)
        self.send_response_only(self.server.status)
        if self.server.date is not None:
            self.send_header("Date", self.server.date)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv(ADDRESS, f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("status", [200, 404, 501])
@pytest.mark.parametrize("date", DATES)
def test_an_answer_tells_the_time_whatever_else_it_says(
    server: Server, status: int, date: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "now", lambda: 1.0)
    server.date, server.status = DATES[date], status
    assert api_now() == (1795514400.0 if date == "right" else 1.0)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/", "no address"])
def test_without_an_answer_the_time_is_that_of_this_machine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: 1.0)
    monkeypatch.setenv(ADDRESS, address)
    assert api_now() == 1.0
