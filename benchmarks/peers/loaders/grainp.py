"""grain (google-grain): ArrayRecord files, MapDataset + mp_prefetch, first-fit packing. Local files only."""

import json
import pickle

import grain
import grain.python as g
import numpy as np
from grain.experimental import FirstFitPackIterDataset

from .base import Once, W, tar_samples, texts

W.AS_TENSOR = False  # grain has a shared memory of its own for arrays

NAME, PACKAGES = "grain", ["grain", "array-record"]


def prepare():
    from array_record.python.array_record_module import ArrayRecordWriter

    out = {"seconds": 0, "bytes": 0}
    for name in ("grainimg", "graintxt"):
        d = W.S3ROOT / name
        with Once(d) as todo:
            if todo:
                rows = (
                    (pickle.dumps((b, m)) for _, b, m in tar_samples())
                    if name == "grainimg"
                    else (pickle.dumps((None, json.dumps({"id": i, "text": t}).encode())) for i, t in texts())
                )
                w, n, k = None, 0, 0
                for r in rows:
                    if w is None or n > (64 << 20):
                        if w:
                            w.close()
                        w, n, k = (
                            ArrayRecordWriter(
                                str(d / f"part-{k:05d}.arrayrecord"),
                                "group_size:1,uncompressed" if name == "grainimg" else "group_size:1",
                            ),
                            0,
                            k + 1,
                        )
                    w.write(r)
                    n += len(r)
                w.close()
        i = Once(d).info()
        out = {k: round(out[k] + i[k], 2) for k in out}
    return out


def work(raw):
    b, m = pickle.loads(raw)
    if b is not None:
        return W.image_sample(b, m)
    m = json.loads(m)
    return W.text_sample(m["id"], m["text"])


def to_seq(s):
    s = W.pieces(s)[0]
    t = np.concatenate([np.full(s["nvis"], W.IMG, np.int32), s["tokens"], np.asarray([W.EOS], np.int32)])
    return {"tokens": t, "pixels": s["pixels"], "nvis": s["nvis"], "id": s["id"]}


def from_bin(x):
    # a packed bin in the common shape; meta features come as lists
    nv = int(sum(x["nvis"]))
    used = int((np.asarray(x["tokens_segment_ids"]) > 0).sum())
    return [
        {
            "id": "+".join(x["id"]),
            "tokens": x["tokens"],
            "images": [p for p in x["pixels"] if p is not None],
            "nvis": nv,
            "ntext": used - nv,
        }
    ]


class Loader:
    def __init__(self, cfg):
        import glob

        self.cfg = cfg
        if cfg.source != "local":
            raise NotImplementedError("ArrayRecord over S3 is not supported")

        def src(n):
            return g.ArrayRecordDataSource(sorted(glob.glob(str(W.S3ROOT / n / "*.arrayrecord"))))

        ro = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)

        def mp(ds):
            return ds.mp_prefetch(grain.MultiprocessingOptions(num_workers=cfg.workers)) if cfg.workers else ds

        if cfg.mode == "image":
            ds = grain.MapDataset.source(src("grainimg")).seed(cfg.seed).shuffle()
            ds = ds[cfg.rank :: cfg.world].map(work).to_iter_dataset(ro).batch(cfg.batch, batch_fn=list)
        else:
            a = grain.MapDataset.source(src("grainimg")).seed(cfg.seed).shuffle().repeat().map(work)
            b = grain.MapDataset.source(src("graintxt")).seed(cfg.seed).shuffle().repeat().map(work)
            m = grain.MapDataset.mix([a, b], W.blend_weights())[cfg.rank :: cfg.world].map(to_seq).to_iter_dataset(ro)
            ds = FirstFitPackIterDataset(
                m,
                length_struct={"tokens": W.SEQ},
                num_packing_bins=16,
                shuffle_bins=False,
                meta_features=("pixels", "nvis", "id"),
            ).map(from_bin)
        self.it = iter(mp(ds))

    def __iter__(self):
        yield from self.it

    def state(self):
        return self.it.get_state()

    def load(self, s):
        self.it.set_state(s)


make = Loader
