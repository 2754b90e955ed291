#!/usr/bin/env python3
"""Serve BENCH_DATA/s3root over real S3 (rclone) on 127.0.0.1:9000, with a counting proxy on :9001.

  serve.py                      run both until SIGTERM / Ctrl-C
  serve.py --latency-ms 20      every request waits 20 ms first (first-byte latency of a remote store)
  serve.py --mbps 400           limit each direction's total rate

The proxy's admin port (:9002): GET /stats -> JSON, GET /reset, GET /set?latency_ms=20&mbps=0.
Only ever binds and connects to 127.0.0.1.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

DATA = Path(os.environ.get("BENCH_DATA", "/tmp/benchdata"))
KEY, SECRET = os.environ.get("BENCH_S3_KEY", "bench"), os.environ.get("BENCH_S3_SECRET", "benchsecret")
BACK, FRONT, ADMIN = (int(os.environ.get("BENCH_S3_PORT", 9000)) + i for i in range(3))
CFG = {"latency_ms": 0.0, "mbps": 0.0}
STATS = Counter()
_next = 0.0


async def head_of(r):
    try:
        return await r.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def header(h, name):
    for line in h.split(b"\r\n")[1:]:
        k, _, v = line.partition(b":")
        if k.strip().lower() == name:
            return v.strip()
    return None


async def pace(n):
    global _next
    if CFG["mbps"]:
        now = time.monotonic()
        _next = max(_next, now) + n / (CFG["mbps"] * 1e6)
        if _next - now > 0.002:
            await asyncio.sleep(_next - now)


async def handle(cr, cw):
    try:
        br, bw = await asyncio.open_connection("127.0.0.1", BACK, limit=1 << 20)
    except OSError:
        cw.close()
        return
    STATS["connections"] += 1
    ranged = False

    async def down():
        nonlocal ranged
        while True:
            b = await br.read(1 << 18)
            if not b:
                break
            # rclone answers a ranged GET with the right bytes and Content-Range, but status 200; clients that check
            # (obstore) refuse that, and S3 itself says 206
            if ranged and b.startswith(b"HTTP/1.1 200 OK"):
                b, ranged = b"HTTP/1.1 206 Partial Content" + b[15:], False
            STATS["bytes_out"] += len(b)
            await pace(len(b))
            cw.write(b)
            await cw.drain()
        cw.close()

    task = asyncio.create_task(down())
    try:
        while True:
            h = await head_of(cr)
            if not h:
                break
            method, path = h.split(b" ", 2)[:2]
            STATS["requests"] += 1
            STATS[method.decode()] += 1
            if header(h, b"range"):
                STATS["ranged"] += 1
                ranged = method == b"GET"
            if b"list-type" in path or b"prefix=" in path:
                STATS["list"] += 1
            if CFG["latency_ms"]:
                await asyncio.sleep(CFG["latency_ms"] / 1e3)
            bw.write(h)
            left = int(header(h, b"content-length") or 0)
            while left:
                b = await cr.read(min(left, 1 << 18))
                if not b:
                    break
                left -= len(b)
                STATS["bytes_in"] += len(b)
                bw.write(b)
                await bw.drain()
            await bw.drain()
    except ConnectionError:
        pass
    finally:
        bw.close()
        try:
            await asyncio.wait_for(task, 5)
        except Exception:
            task.cancel()


async def admin(r, w):
    h = await head_of(r)
    if h:
        u = urlsplit(h.split(b" ", 2)[1].decode())
        if u.path == "/reset":
            STATS.clear()
        elif u.path == "/set":
            CFG.update({k: float(v[0]) for k, v in parse_qs(u.query).items() if k in CFG})
        body = json.dumps({**STATS, **CFG}).encode()
        w.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(body)
            + body
        )
        await w.drain()
    w.close()


async def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--latency-ms", type=float, default=0)
    ap.add_argument("--mbps", type=float, default=0, help="MB/s in total; 0 = no limit")
    a = ap.parse_args()
    CFG.update(latency_ms=a.latency_ms, mbps=a.mbps)
    rclone = str(Path(sys.executable).with_name("rclone"))
    if not os.path.exists(rclone):
        rclone = "rclone"
    p = subprocess.Popen(
        [
            rclone,
            "serve",
            "s3",
            "--addr",
            f"127.0.0.1:{BACK}",
            "--auth-key",
            f"{KEY},{SECRET}",
            "--vfs-cache-mode",
            "off",
            "--no-checksum",
            "--log-level",
            "ERROR",
            str(DATA / "s3root"),
        ]
    )
    stop = asyncio.Event()
    for s in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(s, stop.set)
    f = await asyncio.start_server(handle, "127.0.0.1", FRONT, limit=1 << 20)
    g = await asyncio.start_server(admin, "127.0.0.1", ADMIN)
    (DATA / "serve.pid").write_text(str(os.getpid()))
    print(
        f"s3 on 127.0.0.1:{BACK}, counted on :{FRONT}, admin on :{ADMIN}, pid {os.getpid()}, rclone {p.pid}", flush=True
    )
    await stop.wait()
    f.close(), g.close()
    p.terminate()
    p.wait()


if __name__ == "__main__":
    with contextlib.suppress(SystemExit, asyncio.CancelledError):
        asyncio.run(main())
