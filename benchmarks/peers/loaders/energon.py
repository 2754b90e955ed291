"""megatron-energon: prepared webdatasets, a crude cooker, a task encoder with packing, MetadatasetV2 blending."""

import os
from typing import Any

import megatron.energon  # noqa: F401  (import time is measured apart)

from .base import S3, Once, W, text_tars

NAME, PACKAGES = "megatron-energon", ["megatron-energon", "multi-storage-client", "webdataset", "torch"]
MSC = W.DATA / "msc.yaml"


def prepare():
    os.environ["MSC_CONFIG"] = str(MSC)
    _config()
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors import BaseWebdatasetFactory

    out = {"seconds": 0, "bytes": 0}
    for name, src in (("energon-img", W.S3ROOT / "wds"), ("energon-txt", text_tars())):
        d = W.S3ROOT / name
        with Once(d) as todo:
            if todo:
                tars = sorted(p.name for p in src.glob("*.tar"))
                for t in tars:
                    os.link(src / t, d / t)
                BaseWebdatasetFactory.prepare_dataset(
                    EPath(str(d)),
                    tars,
                    split_parts_ratio=[("train", 1), ("val", 0), ("test", 0)],
                    shuffle_seed=None,
                    workers=1,
                )
                (d / ".nv-meta/dataset.yaml").write_text(
                    f"__module__: megatron.energon\n__class__: CrudeWebdataset\nsubflavors:\n  kind: {name[-3:]}\n"
                )
        i = Once(d).info()
        out["seconds"] += i["seconds"]
        out["bytes"] += sum(p.stat().st_size for p in (d / ".nv-meta").rglob("*") if p.is_file())
    pi, pt = W.blend_weights()
    (W.S3ROOT / "energon-mix").mkdir(exist_ok=True)
    (W.S3ROOT / "energon-mix/blend.yaml").write_text(
        "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n"
        f"      - weight: {pi:.6f}\n        path: ../energon-img\n      - weight: {pt:.6f}\n        path: ../energon-txt\n"
    )
    return {k: round(v, 2) for k, v in out.items()}


def _config():
    MSC.write_text(
        "profiles:\n"
        + "".join(
            f"  {b}:\n    storage_provider:\n      type: s3\n      options:\n        base_path: {b}\n        region_name: us-east-1\n        endpoint_url: {S3['endpoint']}\n"
            f"    credentials_provider:\n      type: S3Credentials\n      options:\n        access_key: {S3['key']}\n        secret_key: {S3['secret']}\n"
            for b in ("energon-img", "energon-txt", "energon-mix")
        )
    )


def _encoder(cfg):
    from megatron.energon import Cooker, DefaultTaskEncoder, Sample, basic_sample_keys, edataclass, stateless

    global One

    @edataclass
    class One(Sample):
        s: Any

    One.__qualname__ = "One"

    @stateless
    def cook(sample: dict) -> One:
        # raw bytes only: the shuffle buffer comes after the cooker, and must not hold decoded pictures
        if "txt" in sample:
            raw = (sample["__key__"].split("/")[-1], sample["txt"])
        else:
            raw = (sample.get("jpg") or sample.get("png"), sample["json"])
        return One(**basic_sample_keys(sample), s=("txt" in sample, *raw))

    class Enc(DefaultTaskEncoder):
        cookers = [Cooker(cook)]
        decoder = None  # raw bytes: the shared work module decodes

        @stateless
        def encode_sample(self, x: One) -> One:
            is_text, a, b = x.s
            if is_text:
                x.s = W.text_sample(a, b if isinstance(b, str) else bytes(b).decode())
            else:
                x.s = W.image_sample(a, b if isinstance(b, (bytes, str)) else bytes(b))
            return x

        def batch(self, samples):
            return [x.s for x in samples]

        def encode_batch(self, b):
            return b

    class PackEnc(Enc):
        def select_samples_to_pack(self, samples: list[One]) -> list[list[One]]:
            # first fit over the buffer; over-long text is cut by the packer below
            groups, room = [], []
            for x in samples:
                n = min(W.length(x.s), W.SEQ)
                for k, r in enumerate(room):
                    if n <= r:
                        groups[k].append(x)
                        room[k] -= n
                        break
                else:
                    groups.append([x])
                    room.append(W.SEQ - n)
            return groups

        @stateless
        def pack_selected_samples(self, samples: list[One]) -> One:
            p = W.assemble([W.pieces(x.s)[0] for x in samples])
            return One(__key__=",".join(x.__key__ for x in samples), __restore_key__=(), s=p)

    return PackEnc() if cfg.mode == "blend" else Enc()


class Loader:
    def __init__(self, cfg):
        os.environ["MSC_CONFIG"] = str(MSC)
        _config()
        from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset

        root = str(W.S3ROOT) + "/" if cfg.source == "local" else "msc://"
        path = root + ("energon-mix/blend.yaml" if cfg.mode == "blend" else "energon-img")
        if cfg.mode == "blend" and cfg.source == "s3":
            raise NotImplementedError("blend over s3 not measured")
        wc = WorkerConfig(rank=cfg.rank, world_size=cfg.world, num_workers=cfg.workers, seed_offset=cfg.seed)
        pack = {"packing_buffer_size": 64} if cfg.mode == "blend" else {}
        ds = get_train_dataset(
            path,
            worker_config=wc,
            batch_size=cfg.batch if cfg.mode == "image" else 1,
            shuffle_buffer_size=500,
            max_samples_per_sequence=100,
            task_encoder=_encoder(cfg),
            **pack,
        )
        self.dl = get_savable_loader(
            ds, checkpoint_every_sec=float(os.environ.get("BENCH_ENERGON_CKPT_SEC", 60))
        )  # 60 is its default

    def __iter__(self):
        yield from self.dl

    def state(self):
        return self.dl.save_state_rank()

    def load(self, s):
        self.dl.restore_state_rank(s)


make = Loader
