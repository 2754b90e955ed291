"""Where the time of threads goes: their stacks looked at some hundred times a second, in; seconds by stage, out.

A stage is named by the file of the innermost frame that has one, so nothing that is measured needs to
know of it, and nothing is slower while nobody looks.
"""

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

INTERVAL_SECONDS = 0.004

STAGE_OF_FILE = {
    "storage/cache.py": "disk",
    "storage/": "store",
    "sample/decode.py": "decode",
    "sample/video.py": "decode",
    "sample/resample.py": "resize",
    "sample/geometry.py": "resize",
    "sample/augment.py": "augment",
    "sample/patches.py": "patches",
    "sample/tokens.py": "tokenize",
    "sample/token_cache.py": "tokenize",
    "sample/mask.py": "tokenize",
    "sample/chat.py": "tokenize",
    "sample/read.py": "read",
    "sample/example.py": "read",
    "catalog/": "read",
    "sample/batch.py": "assemble",
    "loader/prefetch.py": "plan",
    "loader/rows.py": "plan",
    "planning": "plan",
    "plan/": "plan",
    "loader/": "loader",
}
"""Part of a path below the package -> stage; the first that fits."""
STAGES = (*dict.fromkeys(STAGE_OF_FILE.values()), "queue")
"""All stages; `queue` is the trainer waiting for a batch that is not ready."""

_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"
_IDLE = ("thread.py", "_worker")
"""A thread of a pool that has nothing to do."""


class StageClock:
    """Counts, while it is open, the seconds that the threads of one loader spend in each stage, by source."""

    def __init__(self, *, prefix: str, source_of_thread: Mapping[int, str]) -> None:
        """Start looking.

        Args:
            prefix: with which the names of the threads to be watched begin; the thread that calls this is one too.
            source_of_thread: the dataset on which a thread works, by the thread's identity; it may change.
        """
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        """(source, stage) -> seconds of threads; the source is "" where none is known."""
        self._prefix, self._source_of_thread = prefix, source_of_thread
        self._caller = threading.get_ident()
        self._is_open = threading.Event()
        self._is_open.set()
        self._stages: dict[str, str | None] = {__file__: None}
        self._thread = threading.Thread(target=self._watch, name="stage-clock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking; what was counted stays."""
        self._is_open.clear()
        self._thread.join()

    def totals(self) -> dict[str, float]:
        """Return the seconds of each of STAGES over all sources."""
        found = dict.fromkeys(STAGES, 0.0)
        for (_, stage), seconds in list(self.seconds.items()):
            found[stage] += seconds
        return found

    def by_source(self) -> dict[str, dict[str, float]]:
        """Return the seconds of each source's stages; what belongs to no source is left out."""
        found: dict[str, dict[str, float]] = {}
        for (source, stage), seconds in sorted(self.seconds.items()):
            if source:
                found.setdefault(source, {})[stage] = seconds
        return found

    def _watch(self) -> None:
        before = time.perf_counter()
        while self._is_open.is_set():
            time.sleep(INTERVAL_SECONDS)
            now = time.perf_counter()
            self._look(now - before)
            before = now

    def _look(self, seconds: float) -> None:
        watched = {thread.ident for thread in threading.enumerate() if thread.name.startswith(self._prefix)}
        for identity, frame in sys._current_frames().items():
            if identity == self._caller:
                stage = self._stage(frame, waiting="queue")
            elif identity in watched:
                stage = self._stage(frame, waiting="store")
            else:
                continue
            if stage is not None:
                self.seconds[self._source_of_thread.get(identity, ""), stage] += seconds

    def _stage(self, frame: FrameType | None, *, waiting: str) -> str | None:
        """Return the stage of a stack: of its innermost frame in the package, or `waiting` for another's work."""
        is_waiting, is_first = False, True
        while frame is not None:
            name = frame.f_code.co_filename
            if is_first and name.endswith(_IDLE[0]) and frame.f_code.co_name == _IDLE[1]:
                return None
            is_first = False
            is_waiting |= name.endswith("concurrent/futures/_base.py")
            if name.startswith(_PACKAGE):
                stage = self._stage_of_file(name)
                if stage is not None:
                    return waiting if is_waiting else stage
            frame = frame.f_back
        return None

    def _stage_of_file(self, name: str) -> str | None:
        if name not in self._stages:
            below = name.removeprefix(_PACKAGE)
            self._stages[name] = next((stage for part, stage in STAGE_OF_FILE.items() if below.startswith(part)), None)
        return self._stages[name]
