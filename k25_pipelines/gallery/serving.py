"""A read-only web server of the lake's pages: the links that an asset's materialisation shows lead here.

A page that is kept is given as it is; one that is not is made while its reader waits, if it is a gallery, a step or a
lineage. Nothing is written, and only a browser that asks for an address of this server is answered.
"""

import re
import threading
from collections import defaultdict
from collections.abc import Callable, Collection
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from k25_pipelines.errors import K25Error
from k25_pipelines.gallery.dataset import dataset_page
from k25_pipelines.gallery.kept import SUFFIX, address, kept_names, kept_page, step_name
from k25_pipelines.gallery.lineage import checkpoint_lineage_page, sample_lineage_page
from k25_pipelines.gallery.page import page
from k25_pipelines.gallery.step import step_page
from k25_pipelines.governance.copies import PAGES
from k25_pipelines.planning import open_plan
from k25_pipelines.storage.store import Store

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*){2,3}")
"""What a page's name may look like: no part of it leads upwards."""
MOST_PACKS = 16
"""Of a step that are shown whole: those of the first of so many ranks that a rank has about as many."""


class PageServer:
    """The server, in a thread of its own until it is closed."""

    def __init__(self, lake: Store, *, port: int = 0, host: str = "127.0.0.1", names: Collection[str] = ()) -> None:
        """Listen.

        Args:
            lake: whose pages.
            port: of this machine; 0: any that is free.
            host: on which address; the pages show the data to whoever reaches it.
            names: by which a browser may call this server besides those of the machine itself.

        Raises:
            K25Error: the port is taken.
        """
        handler = type("Handler", (_Handler,), {"pages": _Pages(lake), "names": {*LOOPBACK, host, *names}})
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise K25Error(f"pages cannot be served on port {port}: {error.strerror}; name another port") from error
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="k25-pages", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Pages:
    """Finds pages, or makes them, one at a time."""

    def __init__(self, lake: Store) -> None:
        self._lake, self._lock = lake, threading.Lock()
        self._makers: dict[str, Callable[..., str]] = {
            r"datasets/([^/]+)/([^/]+)/gallery": self._gallery,
            r"plans/([^/]+)/step-(\d+)": self._step,
            r"checkpoints/([^/]+/[^/]+)": lambda key: checkpoint_lineage_page(self._lake, key, served=True),
            r"samples/([^/]+)/(\d+)": lambda name, n: sample_lineage_page(self._lake, name, int(n), served=True),
        }

    def get(self, name: str) -> bytes | None:
        """Return a page, None where there is none. Raises K25Error: why there cannot be one."""
        if not name:
            return _contents(self._lake).encode()
        if (kept := kept_page(self._lake, name)) is not None:
            return kept
        for pattern, make in self._makers.items():
            if found := re.fullmatch(pattern, name):
                with self._lock:
                    return make(*found.groups()).encode()
        return None

    def _gallery(self, name: str, version: str) -> str:
        return dataset_page(self._lake, name, digest=version, served=True)

    def _step(self, plan: str, step: str) -> str:
        return served_step(self._lake, plan, int(step))


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    pages: _Pages
    names: Collection[str]
    server_version, sys_version = "k25", ""

    def do_GET(self) -> None:
        """Answer with a page, or with why there is none."""
        host = re.sub(r":\d+$", "", self.headers.get("Host", ""))
        if host not in self.names:  # a page elsewhere whose name was made to lead here
            return self._answer(403, page("Not here", f"<p>This server is not called {escape(host)}.</p>").encode())
        name = unquote(urlsplit(self.path).path).strip("/").removesuffix(SUFFIX)
        if name and not NAME.fullmatch(name):
            return self._answer(404, _missing(name))
        try:
            found = self.pages.get(name)
        except K25Error as error:
            return self._answer(404, page("No such page", f"<p class=bad>{escape(str(error))}</p>").encode())
        return self._answer(200, found) if found is not None else self._answer(404, _missing(name))

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def served_step(lake: Store, plan_id: str, step: int) -> str:
    """Return the page of a plan's step with links to those beside it, to its samples and to all pages."""
    plan = open_plan(lake, plan_id)
    ranks = max(1, plan.recipe.packs_per_step // MOST_PACKS)
    beside = [
        (words, address(step_name(plan_id, other)))
        for words, other in ((f"← step {step - 1}", step - 1), (f"step {step + 1} →", step + 1))
        if 0 <= other < plan.num_steps
    ]
    return step_page(lake, plan_id, step=step, num_ranks=ranks, links=[*beside, ("all pages", "/")], served=True)


def _missing(name: str) -> bytes:
    told = (
        f"<p>No page <code>{escape(name)}</code> is kept. Pages are removed when samples are "
        "forgotten; materialise the asset again to have it written anew.</p><p><a href='/'>all pages</a></p>"
    )
    return page("No such page", told).encode()


def _contents(lake: Store) -> str:
    """Return the page that lists all others."""
    groups = defaultdict[str, list[str]](list)
    for name in kept_names(lake):
        groups[name.split("/")[0]].append(name)
    parts = []
    for group, names in groups.items():
        items = "".join(
            f"<li><a href='{escape(address(name), quote=True)}'>{escape(name.removeprefix(group)[1:])}</a></li>"
            for name in names
        )
        parts.append(f"<h2>{group.capitalize()}</h2><ul>{items}</ul>")
    body = "".join(parts) or "<p>No asset has written one.</p>"
    return page("Pages", body, under=f"<code>{escape(lake.url)}/{PAGES}</code>")
