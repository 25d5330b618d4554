"""HTTP server of this machine in the place of Cloud Storage, on which the tests' kinds of server are built."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class BucketServer(ThreadingHTTPServer):
    """Server on a free port of the loopback, at `url`."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is part of the game

    @contextmanager
    def serving(self, setenv: Callable[[str, str], None]) -> Iterator[None]:
        """Serves while the context is open; every folder of a bucket opened meanwhile talks to this server."""
        with self:
            setenv("STORAGE_EMULATOR_HOST", self.url)
            thread = threading.Thread(target=self.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield
            finally:
                self.shutdown()
                thread.join()
