"""A mock of an S3 server for what a real one cannot be made to do: refuse above a rate, answer one request late."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
BODY = bytes(range(256)) * 64


class Gate:
    """Lets requests through at a rate and counts, by its own clock, what it could have let through."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.permits, self.offered, self.last = burst, 0.0, time.monotonic()
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def lets_in(self, who: str) -> bool:
        with self.lock:
            now = time.monotonic()
            grown = (now - self.last) * self.rate
            self.permits, self.offered, self.last = min(self.burst, self.permits + grown), self.offered + grown, now
            is_let_in = self.permits >= 1
            self.permits -= is_let_in
            self.counts["served" if is_let_in else "refused"] += 1
            self.counts[who] += is_let_in
            return is_let_in

    def seen(self) -> tuple[int, int, float]:
        """Return requests served and refused, and permits offered, so far."""
        with self.lock:
            return self.counts["served"], self.counts["refused"], self.offered


@contextmanager
def mock_s3(answer: Callable[[str], tuple[int, float]]) -> Iterator[str]:
    """Serve BODY under every key; `answer` says status and delay [s] of a request for a key. Yields the endpoint.

    A 429 comes with a Retry-After of a second.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, delay = answer(self.path.partition("?")[0])
            time.sleep(delay)
            asked = self.headers.get("Range", "")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            body = BODY[int(first) : int(last) + 1] if asked else BODY
            body = body if status == 200 else BUSY
            self.send_response(206 if status == 200 and asked else status)
            self.send_header("ETag", '"mock"')
            self.send_header("Content-Length", str(len(body)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that was ended hangs up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
