"""Pages kept in the lake, so that a link to one lasts: a name and HTML in, an object of the lake out.

k25/pages/datasets/<name>/<version>/gallery.html, insight.html
k25/pages/plans/<plan>/balance.html, step-<n>.html
k25/pages/checkpoints/<run>/<step>.html
k25/pages/samples/<dataset>/<line>.html    made when it is asked for, and not kept

A page shows samples, so a takedown removes them all; what is asked for afterwards is made anew without these samples.
"""

from html import escape
from urllib.parse import quote

from k25_pipelines.errors import ObjectNotFoundError
from k25_pipelines.governance.copies import PAGES
from k25_pipelines.storage.store import Store

SUFFIX = ".html"


def gallery_name(dataset: str, version: str) -> str:
    """Return the name of a dataset version's page of samples."""
    return f"datasets/{dataset}/{version}/gallery"


def insight_name(dataset: str, version: str) -> str:
    """Return the name of a dataset version's page of statistics."""
    return f"datasets/{dataset}/{version}/insight"


def balance_name(plan: str) -> str:
    """Return the name of the page of how evenly a plan loads ranks."""
    return f"plans/{plan}/balance"


def step_name(plan: str, step: int) -> str:
    """Return the name of the page of a plan's step."""
    return f"plans/{plan}/step-{step}"


def checkpoint_name(checkpoint: str) -> str:
    """Return the name of the lineage page of a checkpoint, which is told by its key."""
    return checkpoint.removeprefix("k25/")


def sample_name(dataset: str, line: int) -> str:
    """Return the name of the lineage page of a sample."""
    return f"samples/{dataset}/{line}"


def address(name: str) -> str:
    """Return a page's address below that of its server."""
    return f"/{quote(name)}{SUFFIX}"


def link(name: str, words: str, *, served: bool) -> str:
    """Return HTML that leads to a page; of a page that is a file alone, the words."""
    return f"<a href='{escape(address(name), quote=True)}'>{escape(words)}</a>" if served else escape(words)


def keep_page(lake: Store, name: str, text: str) -> str:
    """Keep a page under a name, in place of one that was there, and return the name."""
    lake.put(f"{PAGES}{name}{SUFFIX}", text.encode())
    return name


def kept_page(lake: Store, name: str) -> bytes | None:
    """Return a page that is kept, None where there is none."""
    try:
        return lake.get(f"{PAGES}{name}{SUFFIX}")
    except ObjectNotFoundError:
        return None


def kept_names(lake: Store) -> list[str]:
    """Return the names of all pages that are kept, sorted."""
    return sorted(info.key.removeprefix(PAGES).removesuffix(SUFFIX) for info in lake.list(PAGES))
