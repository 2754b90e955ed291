"""`k25 metrics`: what loader and trainers are doing, for Prometheus."""

import argparse
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from k25_pipelines.commands.parts import command
from k25_pipelines.environment import STATE
from k25_pipelines.errors import K25Error


def add_commands(commands) -> None:
    """Add them to the parser."""
    metrics = command(
        commands,
        "metrics",
        _metrics,
        purpose="serve figures of the runs of this machine to Prometheus, or print them once",
        example="k25 metrics --port 9464   or   k25 metrics --once",
    )
    metrics.add_argument("--work", type=Path, help="folder of the trainers' work; K25_WORK, or .k25/work, if not given")
    metrics.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    metrics.add_argument("--port", type=int, default=9464)
    metrics.add_argument("--once", action="store_true", help="print them and end; for a node exporter's text files")


def _metrics(options: argparse.Namespace) -> None:
    from k25_pipelines.telemetry import CONTENT_TYPE, Telemetry

    work = options.work or Path(os.environ.get("K25_WORK", STATE / "work"))
    if not work.is_dir():
        raise K25Error(f"no folder {work}; give the trainers' with --work, or start one: k25 train joint")
    telemetry, lock = Telemetry(work), Lock()
    if options.once:
        telemetry.look()
        print(telemetry.text(), end="")
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                telemetry.look()
                body = telemetry.text().encode()
            self.send_response(200 if self.path in ("/metrics", "/") else 404)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(body if self.path in ("/metrics", "/") else b"see /metrics\n")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of each look."""

    with ThreadingHTTPServer((options.host, options.port), Handler) as server:
        print(f"metrics: http://{options.host}:{server.server_address[1]}/metrics   (Ctrl-C stops it)", flush=True)
        server.serve_forever()
