#!/usr/bin/env python3
"""One measurement of one peer in one fresh process; prints one JSON line. run.py starts these.

measure.py PEER throughput --mode image|blend --source local|s3 --workers N [--samples N]
measure.py PEER record     --out FILE      run an epoch, checkpoint at 10/50/90 %
measure.py PEER resume     --out FILE --at 10
measure.py PEER order      --out FILE      ids only (BENCH_LIGHT=1), RANK / WORLD_SIZE from the environment
measure.py PEER prepare
"""

import time

T0 = time.perf_counter()
import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
FRACS = (10, 50, 90)


def cpu():
    """CPU seconds of this process and its live descendants so far."""
    import psutil

    p, n = psutil.Process(), 0.0
    for q in [p, *p.children(recursive=True)]:
        try:
            c = q.cpu_times()
            n += c.user + c.system + (c.children_user + c.children_system if q is not p else 0)
        except psutil.Error:
            pass
    return n


def sha(ids):
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("peer"), ap.add_argument("test")
    ap.add_argument("--mode", default="image"), ap.add_argument("--source", default="local")
    ap.add_argument("--workers", type=int, default=2), ap.add_argument("--samples", type=int, default=1000)
    ap.add_argument("--seconds", type=float, default=60), ap.add_argument("--warm", type=int, default=10)
    ap.add_argument("--out"), ap.add_argument("--at", type=int), ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--extra", default="{}")
    a = ap.parse_args()
    import work as W
    from loaders.base import Cfg

    peer = importlib.import_module(f"loaders.{a.peer}")
    r = {"peer": peer.NAME, "test": a.test, "mode": a.mode, "source": a.source, "workers": a.workers}
    if a.test == "prepare":
        r.update(peer.prepare(), versions={p: importlib.metadata.version(p) for p in peer.PACKAGES})
        return r
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo")
    scratch = tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("BENCH_SCRATCH", "/tmp"))
    try:
        cfg = Cfg(
            mode=a.mode,
            source=a.source,
            workers=a.workers,
            rank=rank,
            world=world,
            batch=a.batch,
            scratch=scratch,
            extra=json.loads(a.extra),
        )
        t1 = time.perf_counter()
        ld = peer.make(cfg)
        if a.test == "resume":
            rec = pickle.loads(Path(a.out).read_bytes())
            ld.load(rec["states"][a.at])
        it = iter(ld)
        b = next(it)
        t2 = time.perf_counter()
        r.update(import_s=t1 - T0, first_batch_s=t2 - t1)
        if a.test == "throughput":
            for _ in range(a.warm):
                next(it)
            n = px = nv = nt = 0
            c, t = cpu(), time.perf_counter()
            while n < a.samples and time.perf_counter() - t < a.seconds:
                try:
                    b = next(it)
                except StopIteration:
                    it = iter(ld)
                    continue
                for s in b:
                    n += 1
                    nv += s.get("nvis", 0)
                    if a.mode == "image":
                        px += s["px"] if "px" in s else s["pixels"].shape[0] * s["pixels"].shape[1]
                    else:
                        nt += s["ntext"]
                        px += s["px"] if "px" in s else sum(p.shape[0] * p.shape[1] for p in s["images"])
            dt, c = time.perf_counter() - t, cpu() - c
            # per CPU second of the whole process tree: holds where other work shares the cores
            r.update(n=n, seconds=dt, per_s=n / dt, mpix_per_s=px / dt / 1e6, per_cpu_s=n / c, cpu_window_s=c)
            if a.mode == "blend":
                r.update(
                    tokens_per_s=(nv + nt) / dt,
                    tokens_per_cpu_s=(nv + nt) / c,
                    vision_share=nv / (nv + nt),
                    fill=(nv + nt) / (n * W.SEQ),
                )
        elif a.test == "record":
            total = W.manifest()["images"]
            marks = {int(total * f / 100) // a.batch: f for f in FRACS}
            ids, states, ref, k, cost = [s["id"] for s in b], {}, {}, 1, {}
            end = max(marks) + -(-200 // a.batch)
            while k < end:
                if k in marks:
                    c = time.perf_counter()
                    st = ld.state()
                    cost[marks[k]] = (time.perf_counter() - c, len(pickle.dumps(st)))
                    states[marks[k]] = pickle.loads(pickle.dumps(st))
                    ref[marks[k]] = len(ids)
                try:
                    b = next(it)
                except StopIteration:
                    it = iter(ld)
                    continue
                ids += [s["id"] for s in b]
                k += 1
            nxt = {f: ids[p : p + 200] for f, p in ref.items()}
            Path(a.out).write_bytes(pickle.dumps({"states": states, "next": nxt}))
            r.update(
                save_s={f: c[0] for f, c in cost.items()},
                state_bytes={f: c[1] for f, c in cost.items()},
                short={f: len(v) for f, v in nxt.items()},
            )
        elif a.test == "resume":
            ids = [s["id"] for s in b]
            while len(ids) < 200:
                try:
                    ids += [s["id"] for s in next(it)]
                except StopIteration:
                    break
            want = rec["next"][a.at]
            ids = ids[: len(want)]
            r.update(
                at=a.at,
                identical=ids == want,
                got=sha(ids),
                want=sha(want),
                same_set=sorted(ids) == sorted(want),
                overlap=len(set(ids) & set(want)),
            )
        elif a.test == "order":
            ids = [[s["id"] for s in b]]
            for b in it:
                ids.append([s["id"] for s in b])
                if len(ids) * a.batch * world >= a.samples:
                    break
            Path(a.out).write_text(json.dumps(ids))
            r.update(batches=len(ids))
        return r
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    try:
        out = main()
    except Exception as e:
        import traceback

        traceback.print_exc()
        out = {"error": f"{type(e).__name__}: {e}"[:300]}
    print("RESULT " + json.dumps(out), flush=True)
    sys.stdout.flush()
    os._exit(0)  # loaders whose workers will not stop must not hang the benchmark
