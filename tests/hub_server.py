"""A server that imitates the hub.

Models are the folders ``owner/name`` below one folder, data sets those below its folder ``datasets``.

Everyone with a token is ``owner``, who may write.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

COMMIT = "0" * 40


def _file(folder: Path, path: Path) -> dict[str, object]:
    return {
        "type": "file",
        "path": str(path.relative_to(folder)),
        "size": path.stat().st_size,
        "oid": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


@contextmanager
def serving(root: Path, writable: bool = True) -> Iterator[tuple[str, set[str]]]:
    """Serve the models of a folder; yield the address and the paths of the files that were downloaded."""
    downloaded: set[str] = set()

    def _folder(parts: list[str]) -> Path:
        """Return the folder of ``models/owner/name`` or ``datasets/owner/name``."""
        return root.joinpath(*([] if parts[0] == "models" else parts[:1]), *parts[1:3])

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if "paths-info" in parts:
                folder = _folder(parts[1:])
                asked = json.loads(body)["paths"]
                self._answer(
                    json.dumps(
                        [_file(folder, folder / name) for name in asked if (folder / name).is_file()]
                    ).encode()
                )
                return
            if not writable:
                self._answer(b'{"error": "storage is full"}', 403)
                return
            if parts == ["api", "repos", "create"]:
                about: object = {"url": f"http://{self.headers['Host']}/owner/{json.loads(body)['name']}"}
            elif parts == ["api", "validate-yaml"]:
                about = {"errors": [], "warnings": []}
            elif parts[4] == "preupload":
                asked = json.loads(body)["files"]
                mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                about = {"files": [{"path": file["path"], **mode} for file in asked]}
            else:  # commit
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        path = root.joinpath(*parts[2:4], line["value"]["path"])
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(base64.b64decode(line["value"]["content"]))
                about = {
                    "commitUrl": f"http://{self.headers['Host']}/{'/'.join(parts[2:4])}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            self._answer(json.dumps(about).encode())

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts == ["api", "whoami-v2"]:
                allowed = "Authorization" in self.headers
                self._answer(b'{"name": "owner", "orgs": []}' if allowed else b"{}", 200 if allowed else 401)
                return
            asked = [after for name, after in pairwise(parts) if name in ("revision", "tree", "resolve")]
            if not {"main", COMMIT}.issuperset(asked):
                self._answer(b"{}", 404, X_Error_Code="RevisionNotFound")
                return
            if parts[0] == "api":
                folder = _folder(parts[1:])
                if not folder.is_dir():
                    self._answer(b"{}", 404, X_Error_Code="RepoNotFound")
                    return
                about: object = {"id": "/".join(parts[2:4]), "sha": COMMIT}
                if "tree" in parts:
                    about = [_file(folder, path) for path in folder.rglob("*") if path.is_file()]
                self._answer(json.dumps(about).encode())
                return
            # owner/name/resolve/revision/file, for a data set behind "datasets"
            kind, parts = (parts[:1], parts[1:]) if parts[0] == "datasets" else ([], parts)
            path = root.joinpath(*kind, *parts[:2], *parts[4:])
            if not path.is_file():
                found = path.parent.is_dir()
                self._answer(b"", 404, X_Error_Code="EntryNotFound" if found else "RepoNotFound")
                return
            body = path.read_bytes()
            if self.command == "GET":
                downloaded.add(str(path.relative_to(root)))
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            self._answer(body, ETag=tag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", downloaded
    finally:
        server.shutdown()
        server.server_close()
