"""An HTTP proxy before a real S3 server that counts requests and can delay them: what a store is asked."""

import http.client
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit


class CountingProxy:
    """Forwards to `endpoint` byte for byte; `counts` holds (method, path, range) -> number of requests."""

    def __init__(self, endpoint: str, *, delay_seconds: float = 0.0):
        self.endpoint, self.delay_seconds = urlsplit(endpoint).netloc, delay_seconds
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.bytes_out = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        with self._lock:
            self.counts.clear()
            self.bytes_out = 0

    def ranged_gets(self, part_of_path: str = "") -> Counter[tuple[str, str, str]]:
        """Return the GETs of a range below a path."""
        with self._lock:
            return Counter(
                {
                    request: count
                    for request, count in self.counts.items()
                    if request[0] == "GET" and request[2] and part_of_path in request[1]
                }
            )

    def total(self, method: str = "GET") -> int:
        with self._lock:
            return sum(count for request, count in self.counts.items() if request[0] == method)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy._lock:
                    proxy.counts[self.command, urlsplit(self.path).path, self.headers.get("Range") or ""] += 1
                time.sleep(proxy.delay_seconds)
                backend = http.client.HTTPConnection(proxy.endpoint)
                try:
                    backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():  # the signature covers Host, so it stays the proxy's
                        backend.putheader(name, value)
                    backend.endheaders(body or None)
                    answer = backend.getresponse()
                    data = answer.read()
                finally:
                    backend.close()
                with proxy._lock:
                    proxy.bytes_out += len(data)
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                if length is not None:
                    self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

            def log_message(self, *_: object) -> None:
                pass

        return Handler
