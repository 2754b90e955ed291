"""Baseline: a map-style torch DataLoader with one ranged read per sample, as people write it first."""

import json
import random
import tarfile
from pathlib import Path

from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from .base import S3, Once, W, text_tars, worker_seed

NAME, PACKAGES = "naive", ["torch", "s3fs", "fsspec"]


def _index(d, out):
    rows = []
    for t in sorted(Path(d).glob("*.tar")):
        with tarfile.open(t) as f:
            cur = None
            for m in f:
                stem = m.name.rpartition(".")[0]
                if stem != cur:
                    rows.append([t.name, {}])
                    cur = stem
                rows[-1][1][m.name.rpartition(".")[2]] = (m.offset_data, m.size)
    out.write_text(json.dumps(rows))


def prepare():
    t = text_tars()
    with Once(W.S3ROOT / "naive") as todo:
        if todo:
            _index(W.S3ROOT / "wds", W.S3ROOT / "naive/images.json")
            _index(t, W.S3ROOT / "naive/texts.json")
    return Once(W.S3ROOT / "naive").info()


class Reader:
    def __init__(self, source, bucket):
        self.source, self.bucket, self.fh, self.fs = source, bucket, {}, None

    def read(self, tar, off, n):
        if self.source == "local":
            f = self.fh.get(tar) or self.fh.setdefault(tar, open(W.S3ROOT / self.bucket / tar, "rb"))
            f.seek(off)
            return f.read(n)
        if self.fs is None:
            import s3fs

            self.fs = s3fs.S3FileSystem(
                key=S3["key"],
                secret=S3["secret"],
                client_kwargs={"endpoint_url": S3["endpoint"], "region_name": "us-east-1"},
                skip_instance_cache=True,
            )
        return self.fs.cat_file(f"{self.bucket}/{tar}", start=off, end=off + n)


class Images(Dataset):
    def __init__(self, cfg):
        self.rows = json.loads((W.S3ROOT / "naive/images.json").read_text())
        self.r = Reader(cfg.source, "wds")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        tar, m = self.rows[i]
        e = "jpg" if "jpg" in m else "png"
        return W.image_sample(self.r.read(tar, *m[e]), self.r.read(tar, *m["json"]))


class Blend(IterableDataset):
    def __init__(self, cfg):
        self.cfg, self.img = cfg, Images(cfg)
        self.txt = json.loads((W.S3ROOT / "naive/texts.json").read_text())
        self.tr = Reader(cfg.source, "textwds")
        self.p = W.blend_weights()[0]

    def __iter__(self):
        k, n = worker_seed(self.cfg)
        rnd = random.Random(self.cfg.seed)

        def endless(m):
            while True:
                o = list(range(m))
                rnd.shuffle(o)
                yield from o[k::n]

        ii, ti, pick = endless(len(self.img)), endless(len(self.txt)), random.Random(self.cfg.seed * 1000 + k)

        def stream():
            while True:
                if pick.random() < self.p:
                    yield self.img[next(ii)]
                else:
                    tar, m = self.txt[next(ti)]
                    off, size = m["txt"]
                    yield W.text_sample(f"{tar}@{off}", self.tr.read(tar, off, size).decode())

        for s in W.pack(stream()):
            yield [s]


class Loader:
    def __init__(self, cfg):
        self.cfg, self.skip, self.given = cfg, 0, 0
        kw = {"num_workers": cfg.workers, "persistent_workers": False}
        if cfg.workers:
            kw["prefetch_factor"] = 2
        if cfg.mode == "image":
            ds = Images(cfg)
            self.sampler = DistributedSampler(ds, cfg.world, cfg.rank, shuffle=True, seed=cfg.seed, drop_last=True)
            self.dl = DataLoader(ds, cfg.batch, sampler=self.sampler, collate_fn=list, **kw)
        else:
            self.dl = DataLoader(Blend(cfg), None, **kw)

    def __iter__(self):
        it = iter(self.dl)
        for _ in range(self.skip):  # what plain PyTorch leaves you with: replay and throw away
            next(it)
            self.given += 1
        for b in it:
            self.given += 1
            yield b

    def state(self):
        return {"batches": self.given}

    def load(self, s):
        self.skip = s["batches"]


make = Loader
