"""How long a listing of many names takes, what it holds in memory, and when work could begin.

    python benchmarks/stores.py --names 1000000 --done 500000

A server in a process of its own answers as S3 does (ListObjectsV2, a thousand names a page), out of nothing: `--names`
photos, and a result for each of the first `--done`. What is measured is the plan of `srcli upscale s3://… -o s3://…`, with
s3fs and through the disk as there, without any picture. It stands in for a store and says nothing of a store's own speed.
"""

from __future__ import annotations

import argparse
import http.server
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from srcli.remote.plan import Plan
from srcli.remote.store import PAGE, Stores
from srcli.remote.transit import Ahead
from srcli.remote.urls import parsed

ABOUT = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>4000000</Size>"


class Listing(http.server.BaseHTTPRequestHandler):
    """Pages of names that are numbers."""

    protocol_version = "HTTP/1.1"
    counts: dict[str, int]

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        prefix, start = asked["prefix"][0], int(asked.get("continuation-token", ["0"])[0])
        end = min(start + PAGE, self.counts[prefix])
        names = "".join(f"<Contents><Key>{prefix}{i // 1000:05}/{i:09}.jpg</Key>{ABOUT}</Contents>" for i in range(start, end))
        more = end < self.counts[prefix]
        token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
        body = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{names}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def serve(names: int, done: int) -> None:
    Listing.counts = {"photos/": names, "out/": done}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listing) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--done", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.names, asked.done)
        return
    command = [sys.executable, __file__, "--serve", "--names", str(asked.names), "--done", str(asked.done)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        try:
            measure(asked.names)
        finally:
            server.terminate()


def measure(names: int) -> None:
    start = time.perf_counter()
    plan = Plan(["s3://bucket/photos/"], parsed("s3://bucket/out"), Stores())

    def told(what: str) -> None:
        seconds, computed = time.perf_counter() - start, time.process_time()
        print(f"{what} after {seconds:.2f} s ({computed:.2f} s of a core), {peak_mb():.0f} MB", flush=True)

    told("results listed")
    count = done = 0
    with tempfile.TemporaryDirectory() as folder:
        listing = Ahead(plan.items(), Path(folder) / "listed")
        while (item := listing.take(wait=True)) is not None:
            count += 1
            done += bool(item.kept)
            if count in (1, names // 10):
                told(f"{count} names")
        listing.close()
        size = (Path(folder) / "listed").stat().st_size
    told(f"{count} names, of which {done} are done and {size / 1e6:.0f} MB on the disk,")


if __name__ == "__main__":
    main()
