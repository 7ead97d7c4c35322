"""What tests of object stores share: the stand-in of `store_server.py`, and what lies in it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BUCKET = "bucket"


@dataclass
class Server:
    """A running stand-in."""

    endpoint: str
    client: Any

    def fail(self, *faults: dict[str, Any]) -> None:
        """From now on these happen, and none of before; see `store_server.Faulty`."""
        self._ask("faults", json.dumps(faults).encode())

    def log(self) -> list[str]:
        """The requests since the last call, as `GET /bucket/key?query`."""
        log: list[str] = self._ask("log", None)
        return log

    def put(self, folder: Path, prefix: str) -> None:
        """Have all files of a folder as objects."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.put_object(
                    Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder).as_posix()}", Body=path.read_bytes()
                )

    def names(self, prefix: str) -> list[str]:
        """Of the objects below the prefix, without what runs write down there."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        names = [each["Key"].removeprefix(f"{prefix}/") for each in found]
        return [name for name in names if prefix.endswith(".srcli") or not name.startswith(".srcli/")]

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Name below the prefix -> content."""
        read = lambda name: self.client.get_object(Bucket=BUCKET, Key=f"{prefix}/{name}")["Body"].read()  # noqa: E731
        return {name: read(name) for name in self.names(prefix)}

    def _ask(self, what: str, body: bytes | None) -> Any:
        with urllib.request.urlopen(f"{self.endpoint}/-/{what}", body) as answer:
            return json.load(answer)


def files(folder: Path) -> dict[str, bytes]:
    """As `Server.objects`, of a folder; without what runs write down there."""
    found = ((path.relative_to(folder), path) for path in folder.rglob("*") if path.is_file())
    return {relative.as_posix(): path.read_bytes() for relative, path in found if relative.parts[0] != ".srcli"}


@contextlib.contextmanager
def running(home: Path) -> Iterator[Server]:
    """A stand-in with an empty bucket, to which the environment leads until the end of the block."""
    boto3 = pytest.importorskip("boto3")
    command = [sys.executable, str(Path(__file__).with_name("store_server.py"))]
    environment = {
        "AWS_ACCESS_KEY_ID": "stand-in",
        "AWS_SECRET_ACCESS_KEY": "stand-in",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(home / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
    }
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            endpoint = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            client = boto3.client("s3")
            client.create_bucket(Bucket=BUCKET)
            yield Server(endpoint, client)
        process.communicate("")


def without_credentials(patch: pytest.MonkeyPatch) -> None:
    """As on a machine where nobody has set any."""
    for name in [name for name in os.environ if name.startswith("AWS_") and "KEY" in name]:
        patch.delenv(name)
