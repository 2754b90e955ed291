"""k25_pipelines: the corpus indexed in place, a plan, and the loader's batches handed out sample by sample.

It does more than the others on the way: pixels are normalised and cut into patches, samples are packed, labels,
positions and provenance are made. Threads take the place of workers; BENCH_CACHED_TOKENS=1 reads token ids that were
kept when lengths were counted.
"""

import json
import os
import tempfile
from pathlib import Path

from k25_pipelines.catalog import registry
from k25_pipelines.loader import PlanLoader
from k25_pipelines.plan.recipe import parse_recipe
from k25_pipelines.plan.size import profile
from k25_pipelines.planning import make_plan
from k25_pipelines.sample import token_cache
from k25_pipelines.sample.tokens import SPECIAL_TOKENS, load_tokenizer
from k25_pipelines.storage.store import open_store

from .base import S3, Once, W

NAME, PACKAGES = "k25_pipelines", ["numpy", "pillow", "simplejpeg", "numba", "tokenizers", "pyarrow", "boto3"]
TOKENIZER = W.DATA / "tokenizer-k25.json"
TERMS = {"licence": "benchmark", "source": "benchmark"}
FOLDERS = {"pictures": ("wds", "webdataset"), "documents": ("text", "jsonl")}


def recipe(name: str, **fields):
    base = {
        "name": name,
        "seed": 1,
        "profile": os.environ.get("BENCH_PROFILE", "qwen2_vl"),
        "tokenizer": str(TOKENIZER),
        "pack_tokens": W.SEQ,
        "packs_per_step": 2,
        "max_image_tokens": W.MAX_TOKENS,
    }
    return parse_recipe({**base, **fields})


def recipes():
    images = recipe("images", steps=600, sources={"pictures": {"weight": 1}})
    sources = {"pictures": {"weight": 1}, "documents": {"weight": 1}}
    blend = recipe("blend", steps=300, vision_share=0.10, packs_per_step=8, sources=sources)
    return {"image": images, "blend": blend}


def s3_variables():
    os.environ.update(
        AWS_ENDPOINT_URL=S3["endpoint"],
        AWS_ACCESS_KEY_ID=S3["key"],
        AWS_SECRET_ACCESS_KEY=S3["secret"],
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
    )


def prepare():
    s3_variables()
    if not TOKENIZER.exists():
        tokenizer = W.tokenizer()
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
        tokenizer.save(str(TOKENIZER))
    with Once(W.S3ROOT / "k25") as todo:
        if todo:
            plans = {source: _plans(source) for source in ("local", "s3")}
            (W.S3ROOT / "k25" / "plans.json").write_text(json.dumps(plans))
    return Once(W.S3ROOT / "k25").info()


def _lake(source: str) -> str:
    return str(W.S3ROOT / "k25" / "local") if source == "local" else "s3://k25/s3"


def _plans(source: str) -> dict[str, str]:
    lake = open_store(_lake(source))
    for name, (folder, kind) in FOLDERS.items():
        uri = str(W.S3ROOT / folder) if source == "local" else f"s3://{folder}"
        registry.register(lake, registry.Registration(name=name, uri=uri, kind=kind, annotations=None, **TERMS))
        registry.index_dataset(lake, name)
    documents = registry.load_manifest(lake, "documents")
    token_cache.build(lake, documents, load_tokenizer(str(TOKENIZER)), profile("kimi_k25"))
    return {mode: make_plan(lake, chosen) for mode, chosen in recipes().items()}


class Loader:
    def __init__(self, cfg):
        if cfg.source == "s3":
            s3_variables()
        plans = json.loads((W.S3ROOT / "k25" / "plans.json").read_text())
        self.cfg, self.lake = cfg, open_store(_lake(cfg.source))
        self.loader = PlanLoader(
            plans[cfg.source][cfg.mode],
            self.lake,
            run="bench",
            rank=cfg.rank,
            num_ranks=cfg.world,
            threads=max(1, cfg.workers),
            normalised=os.environ.get("BENCH_NORMALISED") == "1",
            cache=Path(tempfile.mkdtemp(dir=cfg.scratch or None)),
            **({"cached_tokens": True} if os.environ.get("BENCH_CACHED_TOKENS") == "1" else {}),
        )

    def __iter__(self):
        if W.LIGHT:
            yield from self._ids_only()
            return
        for batch in self.loader:
            yield _samples(batch) if self.cfg.mode == "image" else _packs(batch)

    def _ids_only(self):
        """The order alone: what the plan says of this rank's packs, for the checks that need no pixels."""
        plan, rank, world = self.loader.plan, self.cfg.rank, self.cfg.world
        for step in range(self.loader.state_dict()["step"], plan.num_steps):
            rows = plan.rows(step).select(["pack", "dataset", "line"]).to_pylist()
            packs = 1 + max(row["pack"] for row in rows)
            own = range(rank * packs // world, (rank + 1) * packs // world)
            self.loader.load_state_dict({**self.loader.state_dict(), "step": step + 1, "segment": self._segment(step)})
            yield [{"id": f"{row['dataset']}:{row['line']}"} for row in rows if row["pack"] in own]

    def _segment(self, step):
        return self.loader.plan.segment_of(step).digest

    def state(self):
        return self.loader.state_dict()

    def load(self, state):
        self.loader.load_state_dict(state)


def _samples(batch):
    """Each sample with its patches and tokens, views of the batch."""
    sizes = batch.grid_thw.prod(axis=1)
    found, medium, first = [], 0, 0
    for sample in batch.provenance:
        patches = batch.patches[first : first + sizes[medium]]
        pixels = int(sizes[medium]) * 14 * 14
        nvis = int(batch.media_slots[medium, 2])
        entry = {"id": f"{sample.dataset}:{sample.line}", "pixels": patches, "px": pixels, "nvis": nvis}
        found.append(entry)
        medium, first = medium + 1, first + sizes[medium]
    return found


def _packs(batch):
    """Each packed sequence with its counts."""
    found = []
    for row in range(len(batch.input_ids)):
        inside = batch.media_slots[:, 0] == row
        own = [sample for sample in batch.provenance if sample.pack - batch.provenance[0].pack == row]
        nvis = int(batch.media_slots[inside, 2].sum())
        real = sum(sample.num_tokens for sample in own)
        ids = "+".join(f"{sample.dataset}:{sample.line}" for sample in own)
        pixels = int(batch.grid_thw[inside].prod(axis=1).sum()) * 14 * 14
        found.append({"id": ids, "tokens": batch.input_ids[row], "px": pixels, "nvis": nvis, "ntext": real - nvis})
    return found


make = Loader
