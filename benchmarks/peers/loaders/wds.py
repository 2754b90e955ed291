"""webdataset, as its README sets it up: shard shuffle, sample shuffle buffer, DataLoader with batch_size=None."""

import sys
from pathlib import Path

import webdataset as wds
from torch.utils.data import DataLoader

from .base import S3, Once, W, text_tars

NAME, PACKAGES = "webdataset", ["webdataset", "torch"]
CONF = W.DATA / "rclone.conf"


def prepare():
    text_tars()
    CONF.write_text(
        f"[bench]\ntype = s3\nprovider = Rclone\nendpoint = {S3['endpoint']}\naccess_key_id = {S3['key']}\nsecret_access_key = {S3['secret']}\nforce_path_style = true\n"
    )
    return {**Once(W.S3ROOT / "textwds").info(), "note": "images as they are; text jsonl to tar"}


def urls(bucket, source):
    names = sorted(p.name for p in (W.S3ROOT / bucket).glob("*.tar"))
    if source == "local":
        return [str(W.S3ROOT / bucket / n) for n in names]
    rc = Path(sys.executable).with_name("rclone")
    return [f"pipe:{rc} --config {CONF} cat bench:{bucket}/{n}" for n in names]


def image(s):
    return W.image_sample(s.get("jpg") or s.get("png"), s["json"])


def text(s):
    return W.text_sample(s["__key__"], s["txt"].decode())


def packer(src):
    for p in W.pack(src):
        yield [p]


def listed(batch):
    return batch


class Loader:
    def __init__(self, cfg):
        self.cfg, self.skip, self.given = cfg, 0, 0

        def one(b, f, rep):
            return wds.WebDataset(
                urls(b, cfg.source),
                shardshuffle=100,
                seed=cfg.seed,
                nodesplitter=wds.split_by_node,
                empty_check=False,
                resampled=rep,
            )

        if cfg.mode == "image":
            ds = one("wds", image, False).shuffle(500, seed=cfg.seed).map(image).batched(cfg.batch, collation_fn=listed)
        else:
            im = one("wds", image, True).shuffle(500).map(image)
            tx = one("textwds", text, True).shuffle(2000).map(text)
            ds = wds.DataPipeline(wds.RandomMix([im, tx], list(W.blend_weights())), packer)
        self.dl = DataLoader(
            ds, batch_size=None, num_workers=cfg.workers, **({"prefetch_factor": 2} if cfg.workers else {})
        )

    def __iter__(self):
        it = iter(self.dl)
        for _ in range(self.skip):  # no checkpoint of its own: replay
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
