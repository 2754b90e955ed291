"""mosaicml-streaming: MDS shards, StreamingDataset + StreamingDataLoader."""

import importlib.machinery
import importlib.util
import json
import os
import sys
import types

if importlib.util.find_spec("torchvision") is None:
    # streaming imports torchvision unconditionally, only for its ready-made vision datasets (not used here);
    # where there is no torchvision build, empty stand-ins let the rest import
    tv = {
        n: types.ModuleType(n)
        for n in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    }
    tv["torchvision.datasets"].VisionDataset = object
    tv["torchvision.transforms.functional"].to_tensor = lambda x: x
    for n, m in tv.items():
        m.__spec__ = importlib.machinery.ModuleSpec(n, None)
        sys.modules[n] = m
        if "." in n:
            setattr(tv[n.rpartition(".")[0]], n.rpartition(".")[2], m)

import streaming  # noqa: F401  (import time is measured apart)

from .base import S3, Once, W, tar_samples, texts

NAME, PACKAGES = "mosaicml-streaming", ["mosaicml-streaming", "torch"]


def prepare():
    from streaming import MDSWriter

    for name, it in (("mdsimg", ((i, b, m) for i, b, m in tar_samples())), ("mdstxt", None)):
        with Once(W.S3ROOT / name) as todo:
            if todo:
                cols = {"img": "bytes", "meta": "bytes"}
                with MDSWriter(out=str(W.S3ROOT / name), columns=cols, size_limit=(64 if it else 8) << 20) as w:
                    if it:
                        for _, b, m in it:
                            w.write({"img": b, "meta": m})
                    else:
                        for i, t in texts():
                            w.write({"img": b"", "meta": json.dumps({"id": i, "text": t}).encode()})
    a, b = Once(W.S3ROOT / "mdsimg").info(), Once(W.S3ROOT / "mdstxt").info()
    return {k: a[k] + b[k] for k in a}


def _dataset(cfg):
    from streaming import Stream, StreamingDataset

    class DS(StreamingDataset):
        def __getitem__(self, i):
            s = super().__getitem__(i)
            if s["img"]:
                return W.image_sample(s["img"], s["meta"])
            m = json.loads(s["meta"])
            return W.text_sample(m["id"], m["text"])

    def where(b):
        if cfg.source == "local":
            return {"remote": None, "local": str(W.S3ROOT / b)}
        return {"remote": f"s3://{b}", "local": f"{cfg.scratch}/{b}"}

    common = {
        "shuffle": True,
        "shuffle_seed": cfg.seed,
        "num_canonical_nodes": cfg.extra.get("canonical"),
        "batch_size": cfg.batch,
    }
    if cfg.mode == "image":
        return DS(**where("mdsimg"), **common)
    pi, pt = W.blend_weights()
    return DS(streams=[Stream(**where("mdsimg"), proportion=pi), Stream(**where("mdstxt"), proportion=pt)], **common)


def _collate(samples):
    # a dict of lists: streaming counts what was handed out by len() of the batch's first value, and its checkpoint
    # is silently wrong for any other shape (a list of dicts counts the keys)
    return {"samples": samples}


class Loader:
    def __init__(self, cfg):
        os.environ.update(
            S3_ENDPOINT_URL=S3["endpoint"],
            AWS_ACCESS_KEY_ID=S3["key"],
            AWS_SECRET_ACCESS_KEY=S3["secret"],
            AWS_DEFAULT_REGION="us-east-1",
        )
        from streaming import StreamingDataLoader
        from streaming.base.util import clean_stale_shared_memory

        if cfg.world == 1:
            clean_stale_shared_memory()
        self.cfg = cfg
        self.ds = _dataset(cfg)
        self.dl = StreamingDataLoader(
            self.ds,
            batch_size=cfg.batch,
            num_workers=cfg.workers,
            collate_fn=_collate,
            **({"prefetch_factor": 2} if cfg.workers else {}),
        )

    def __iter__(self):
        if self.cfg.mode == "image":
            for b in self.dl:
                yield b["samples"]
            return

        def flat():  # no packing of its own: packed in the training process, after the loader
            while True:
                for b in self.dl:
                    yield from b["samples"]

        for p in W.pack(flat()):
            yield [p]

    def state(self):
        return self.dl.state_dict()

    def load(self, s):
        self.dl.load_state_dict(s)


make = Loader
