#!/usr/bin/env python3
"""Run the chosen peers through the chosen tests; print one table; write results JSON.

  run.py --peers energon,mds,wds,naive --tests throughput,blend,s3,resume,order --rounds 3
A new loader joins by adding peers/<name>.py (see peers/base.py) and naming it in --peers.

Every measurement is a fresh process. Rounds are interleaved (peer A, B, C, A, B, C ...) so that the machine's
drift falls on all alike; quoted figures are medians, and each row has its ratio to the first peer of the same
round (median of the per-round ratios).
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
OUT = Path(os.environ.get("BENCH_OUT", "/tmp/benchdata/results"))
ADMIN = f"http://127.0.0.1:{int(os.environ.get('BENCH_S3_PORT', 9000)) + 2}"


def admin(path):
    return json.loads(urllib.request.urlopen(ADMIN + path, timeout=10).read())


def tree(pid):
    try:
        p = psutil.Process(pid)
        return [p, *p.children(recursive=True)]
    except psutil.Error:
        return []


def pss(ps):
    n = 0
    for q in ps:
        try:
            for line in open(f"/proc/{q.pid}/smaps_rollup"):
                if line.startswith("Pss:"):
                    n += int(line.split()[1]) * 1024
                    break
        except (OSError, psutil.Error):
            pass
    return n


def call(args, env=None, timeout=150, nproc=1):
    """Runs measure.py; adds peak_mb (summed PSS of the process tree), cpu_s and wall_s."""
    e = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **(env or {})}
    err = tempfile.TemporaryFile("w+")
    t = time.perf_counter()
    p = subprocess.Popen(
        [sys.executable, str(HERE / "measure.py"), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=err,
        env=e,
        text=True,
        start_new_session=True,
    )
    peak, seen, done = 0, {}, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.4):
            ps = tree(p.pid)
            peak = max(peak, pss(ps))
            for q in ps:
                try:
                    c = q.cpu_times()
                    seen[q.pid] = c.user + c.system
                except psutil.Error:
                    pass

    w = threading.Thread(target=watch)
    w.start()
    try:
        out, _ = p.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out = 'RESULT {"error": "time limit %d s"}' % timeout
    done.set()
    w.join()
    try:
        os.killpg(p.pid, signal.SIGKILL)  # only the group started above
    except ProcessLookupError:
        pass
    p.wait()
    line = [x for x in out.splitlines() if x.startswith("RESULT ")]
    r = json.loads(line[-1][7:]) if line else {"error": f"exit {p.returncode}"}
    if "error" in r:
        err.seek(0)
        r["stderr"] = err.read()[-1500:]
    r.update(peak_mb=round(peak / 1e6), cpu_s=round(sum(seen.values()), 2), wall_s=round(time.perf_counter() - t, 2))
    return r


def med(v):
    v = [x for x in v if x is not None]
    return statistics.median(v) if v else None


class Run:
    def __init__(self, a):
        self.a, self.rows = a, []
        self.dead = set()

    def add(self, test, peer, r, **k):
        r = {"t": test, "p": peer, **k, **r}
        self.rows.append(r)
        short = {
            x: (round(y, 3) if isinstance(y, float) else y) for x, y in r.items() if x not in ("stderr", "versions")
        }
        print(time.strftime("%H:%M:%S"), json.dumps(short), flush=True)
        if "stderr" in r and self.a.verbose:
            print(r["stderr"], flush=True)
        with open(OUT / "rows.jsonl", "a") as f:
            f.write(json.dumps(r) + "\n")
        return r

    def prepare(self):
        for p in self.a.peers:
            r = self.add("prepare", p, call([p, "prepare"], timeout=400))
            if "error" in r:
                self.dead.add(p)

    def live(self):
        return [p for p in self.a.peers if p not in self.dead]

    def throughput(self, mode="image", source="local", workers=None, test=None, samples=None):
        for k in range(self.a.rounds):
            for p in self.live():
                for w in workers or self.a.workers:
                    n = samples or (self.a.samples if mode == "image" else self.a.samples // 10)
                    self.add(
                        test or mode,
                        p,
                        call(
                            [
                                p,
                                "throughput",
                                "--mode",
                                mode,
                                "--source",
                                source,
                                "--workers",
                                w,
                                "--samples",
                                n,
                                "--warm",
                                6,
                                "--seconds",
                                self.a.seconds,
                            ]
                        ),
                        round=k,
                        w=w,
                    )

    def blend(self):
        self.throughput("blend", workers=[max(self.a.workers)])

    def s3(self):
        w = max(self.a.workers)
        for p in self.live():
            for lat in self.a.latency:
                admin(f"/set?latency_ms={lat}")
                admin("/reset")
                r = call(
                    [
                        p,
                        "throughput",
                        "--source",
                        "s3",
                        "--workers",
                        w,
                        "--samples",
                        1000,
                        "--warm",
                        0,
                        "--seconds",
                        self.a.seconds * 2,
                    ]
                )
                s = admin("/stats")
                self.add(
                    "s3",
                    p,
                    r,
                    latency_ms=lat,
                    w=w,
                    s3={
                        x: s.get(x, 0)
                        for x in ("requests", "GET", "HEAD", "ranged", "list", "connections", "bytes_out")
                    },
                )
        admin("/set?latency_ms=0")

    def resume(self):
        w = max(self.a.workers)
        for p in self.live():
            f = OUT / f"ckpt-{p}.pkl"
            # recorded without decoding (the state does not depend on it); resumed with the full work
            r = self.add(
                "record", p, call([p, "record", "--workers", w, "--out", f], env={"BENCH_LIGHT": "1"}, timeout=120)
            )
            if "error" in r:
                continue
            for at in (10, 50, 90):
                self.add("resume", p, call([p, "resume", "--workers", w, "--out", f, "--at", at], timeout=150), at=at)

    def ranks(self, p, world, workers, batch, tag, extra=None, n=100000):
        """Global steps of a simulated world: [[ids of step 0 over all ranks], ...]"""
        import socket

        s = socket.socket()
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        res, th = [None] * world, []
        fs = [OUT / f"order-{p}-{tag}-{k}.json" for k in range(world)]
        for k in range(world):
            fs[k].unlink(missing_ok=True)
            env = {
                "RANK": k,
                "LOCAL_RANK": k,
                "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": world,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "BENCH_LIGHT": "1",
            }
            if world == 1:
                env = {"BENCH_LIGHT": "1"}
            args = [
                p,
                "order",
                "--workers",
                workers,
                "--batch",
                batch,
                "--out",
                fs[k],
                "--samples",
                n,
                "--extra",
                json.dumps(extra or {}),
            ]
            t = threading.Thread(
                target=lambda k=k, args=args, env=env: res.__setitem__(
                    k, call(args, env={a: str(b) for a, b in env.items()}, timeout=100)
                )
            )
            t.start()
            th.append(t)
        for t in th:
            t.join()
        bad = [r for r in res if "error" in r]
        if bad:
            return None, bad[0]
        per = [json.loads(f.read_text()) for f in fs]
        return [sum((b[i] for b in per if i < len(b)), []) for i in range(max(map(len, per)))], None

    def order(self):
        g = 8
        n = json.loads((Path(os.environ.get("BENCH_DATA", "/tmp/benchdata")) / "manifest.json").read_text())["images"]
        for p in self.live():
            x = {}
            # (world, workers): same total of workers in the second group, energon's own rule for reproducible scaling
            for world, workers in ((1, 2), (1, 2), (1, 1), (2, 2), (4, 2), (1, 4), (2, 1)):
                tag = f"{world}x{workers}" + ("-again" if (world, workers) in x else "")
                steps, bad = self.ranks(p, world, workers, g // world, tag, self.a.extra, n)
                flat = [i for s in (steps or []) for i in s]
                x[(world, workers) if "again" not in tag else "again"] = steps
                self.add(
                    "order",
                    p,
                    {"error": bad["error"], "stderr": bad.get("stderr", "")}
                    if bad
                    else {"ids": len(flat), "distinct": len(set(flat)), "of": n},
                    world=world,
                    w=workers,
                )

            def same(a, b):
                return (
                    None
                    if not x.get(a) or not x.get(b)
                    else (
                        "exact"
                        if x[a] == x[b]
                        else "same steps"
                        if [sorted(s) for s in x[a]] == [sorted(s) for s in x[b]]
                        else f"no ({sum(sorted(s) == sorted(t) for s, t in zip(x[a], x[b]))}/{min(len(x[a]), len(x[b]))} steps)"
                    )
                )

            self.add(
                "order-verdict",
                p,
                {
                    "again": same((1, 2), "again"),
                    "workers 2 vs 1": same((1, 2), (1, 1)),
                    "world 1 vs 2 (2 workers each)": same((1, 2), (2, 2)),
                    "world 1 vs 4 (2 workers each)": same((1, 2), (4, 2)),
                    "1x4 vs 2x2": same((1, 4), (2, 2)),
                    "1x2 vs 2x1": same((1, 2), (2, 1)),
                },
            )

    def scaling(self):
        """energon's documented rule: micro-batch fixed, world x workers fixed; global batches of 8 compared as sets."""
        n = 1600
        for p in self.live():
            x = {}
            for world, workers in ((1, 4), (2, 2), (4, 1)):
                steps, bad = self.ranks(p, world, workers, 2, f"s{world}x{workers}", self.a.extra, n)
                if bad:
                    x[world] = bad["error"]
                    continue
                per = 4 // world  # consecutive steps of `world` micro-batches that make one global batch
                x[world] = [sorted(sum(steps[i : i + per], [])) for i in range(0, len(steps) - per + 1, per)]

            def v(a, b):
                return (
                    f"error: {x[a] if isinstance(x[a], str) else x[b]}"
                    if isinstance(x[a], str) or isinstance(x[b], str)
                    else f"{sum(i == j for i, j in zip(x[a], x[b]))}/{min(len(x[a]), len(x[b]))} global batches the same"
                )

            self.add("scaling", p, {"1x4 vs 2x2": v(1, 2), "1x4 vs 4x1": v(1, 4)})

    def table(self):
        print()
        for test in dict.fromkeys(r["t"] for r in self.rows):
            if test in ("image", "blend"):
                first = self.live()[0]
                print(
                    f"{test:8} {'peer':10} w   {'per s':>8} {'ratio':>6} {'/cpu s':>7} {'ratio':>6} {'tok/s':>9} {'tok/cpu s':>9} {'vis':>5} {'fill':>5} {'1st batch s':>11} {'import s':>8} {'peak MB':>8} {'cpu s':>6}"
                )
                for p in self.a.peers:
                    for w in sorted({r.get("w") for r in self.rows if r["t"] == test}, reverse=True):
                        rs = [r for r in self.rows if r["t"] == test and r["p"] == p and r.get("w") == w]
                        ok = [r for r in rs if "error" not in r]
                        if not ok:
                            continue
                        ref = {
                            r["round"]: r["per_s"]
                            for r in self.rows
                            if r["t"] == test and r["p"] == first and r.get("w") == w and "error" not in r
                        }
                        ratio = med([r["per_s"] / ref[r["round"]] for r in ok if r["round"] in ref])
                        refc = {
                            r["round"]: r["per_cpu_s"]
                            for r in self.rows
                            if r["t"] == test and r["p"] == first and r.get("w") == w and "error" not in r
                        }
                        ratioc = med([r["per_cpu_s"] / refc[r["round"]] for r in ok if r["round"] in refc])

                        def m(k):
                            return med([r.get(k) for r in ok])

                        def f(v, s):
                            return format(v, s) if v is not None else "-"

                        print(
                            f"{test:8} {p:10} {w}   {f(m('per_s'), '8.1f')} {f(ratio, '6.2f')} {f(m('per_cpu_s'), '7.1f')} {f(ratioc, '6.2f')} {f(m('tokens_per_s'), '9.0f'):>9} {f(m('tokens_per_cpu_s'), '9.0f'):>9} {f(m('vision_share'), '5.3f'):>5} {f(m('fill'), '5.3f'):>5} {f(m('first_batch_s'), '11.2f')} {f(m('import_s'), '8.2f')} {m('peak_mb'):8.0f} {m('cpu_s'):6.1f}"
                        )
            elif test not in ("order",):
                for r in self.rows:
                    if r["t"] == test:
                        print(
                            test,
                            {
                                k: (round(v, 3) if isinstance(v, float) else v)
                                for k, v in r.items()
                                if k not in ("t", "stderr", "peer", "test", "mode", "import_s")
                            },
                        )


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--peers", default="naive,wds,mds,energon,litd,grainp")
    ap.add_argument("--tests", default="image,blend,s3,resume,order")
    ap.add_argument("--workers", default="2,0")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--samples", type=int, default=1000)
    ap.add_argument("--seconds", type=float, default=20, help="cap on one throughput measurement")
    ap.add_argument("--latency", default="0,20")
    ap.add_argument("--extra", default="{}", help="JSON handed to the peers as cfg.extra in the order test")
    ap.add_argument("--verbose", action="store_true")
    a = ap.parse_args()
    a.peers = a.peers.split(",")
    a.workers = [int(x) for x in a.workers.split(",")]
    a.latency = [float(x) for x in a.latency.split(",")]
    a.extra = json.loads(a.extra)
    OUT.mkdir(parents=True, exist_ok=True)
    r = Run(a)
    r.prepare()
    for t in a.tests.split(","):
        if t == "image":
            r.throughput()
        elif t:
            getattr(r, t)()
    r.table()
    f = OUT / time.strftime("results-%Y%m%d-%H%M%S.json")
    f.write_text(json.dumps({"args": vars(a), "load": os.getloadavg(), "rows": r.rows}, indent=1))
    print("wrote", f)


if __name__ == "__main__":
    main()
