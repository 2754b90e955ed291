"""litdata: optimized chunks, StreamingDataset / CombinedStreamingDataset, StreamingDataLoader."""

import json

import litdata as ld

from .base import S3, Once, W, tar_samples, texts

NAME, PACKAGES = "litdata", ["litdata", "torch"]


def prepare():
    from litdata.streaming.writer import BinaryWriter

    out = {"seconds": 0, "bytes": 0}
    for name, chunk in (("litimg", 64 << 20), ("littxt", 8 << 20)):
        with Once(W.S3ROOT / name) as todo:
            if todo:
                w = BinaryWriter(str(W.S3ROOT / name), chunk_bytes=chunk)
                rows = (
                    ({"img": b, "meta": m} for _, b, m in tar_samples())
                    if name == "litimg"
                    else ({"img": b"", "meta": json.dumps({"id": i, "text": t}).encode()} for i, t in texts())
                )
                for k, r in enumerate(rows):
                    w.add_item(k, r)
                w.done()
                w.merge()
        i = Once(W.S3ROOT / name).info()
        out = {k: round(out[k] + i[k], 2) for k in out}
    return out


class Loader:
    def __init__(self, cfg):
        self.cfg = cfg

        class DS(ld.StreamingDataset):
            def __getitem__(self, i):
                s = super().__getitem__(i)
                if len(s["img"]):
                    return W.image_sample(s["img"], s["meta"])
                m = json.loads(s["meta"])
                return W.text_sample(m["id"], m["text"])

        def one(b):
            kw = {"shuffle": True, "seed": cfg.seed, "drop_last": False}
            if cfg.source == "local":
                return DS(str(W.S3ROOT / b), **kw)
            if S3["endpoint"].startswith("http://"):
                # its obstore client accepts no plain http endpoint and offers no switch: fall back to its boto3 path
                import litdata.streaming.downloader as d

                d._OBSTORE_AVAILABLE = False
            return DS(
                f"s3://{b}",
                cache_dir=f"{cfg.scratch}/{b}",
                storage_options={
                    "endpoint_url": S3["endpoint"],
                    "aws_access_key_id": S3["key"],
                    "aws_secret_access_key": S3["secret"],
                    "region_name": "us-east-1",
                },
                **kw,
            )

        if cfg.mode == "image":
            ds = one("litimg")
        else:
            ds = ld.CombinedStreamingDataset(
                [one("litimg"), one("littxt")], weights=list(W.blend_weights()), seed=cfg.seed, iterate_over_all=False
            )
        self.dl = ld.StreamingDataLoader(
            ds,
            batch_size=cfg.batch,
            num_workers=cfg.workers,
            collate_fn=list,
            **({"prefetch_factor": 2} if cfg.workers else {}),
        )

    def __iter__(self):
        if self.cfg.mode == "image":
            yield from self.dl
            return

        def flat():  # no packing of its own for images: packed in the training process
            while True:
                for b in self.dl:
                    yield from b

        for p in W.pack(flat()):
            yield [p]

    def state(self):
        return self.dl.state_dict()

    def load(self, s):
        self.dl.load_state_dict(s)


make = Loader
