"""A hub on this machine: repositories in memory, served by the few endpoints that huggingface_hub asks, with faults."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT, OLDER = "a" * 40, "b" * 40
FAULTS = {
    "gated": (403, "GatedRepo"),
    "private": (401, "RepoNotFound"),
    "absent": (404, "RepoNotFound"),
    "down": (503, ""),
}


class Hub:
    """Repositories by name and revision, and the fault that each has."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.faults: dict[str, str] = {}
        self.asked: list[str] = []

    def put(self, name: str, folder: Path, *, under: str = "", commit: str = COMMIT) -> None:
        files = {f"{under}{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repositories.setdefault(name, {}).setdefault(commit, {}).update(files)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        after = [*(parts[4:] if parts[0] == "api" else parts[2:]), ""]
        fault = self.faults.get(name) or ("" if name in self.repositories else "absent")
        if fault and (fault != "gated" or after[0] == "resolve"):  # a gated repository's listing is open
            status, code = FAULTS[fault]
            return status, {"X-Error-Code": code} if code else {}, b"{}"
        commits = self.repositories[name]
        asked = after[1] if len(after) > 2 else "main"
        commit = {"main": COMMIT, "older": OLDER}.get(asked, asked)
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = commits[commit]
        if after[0] == "resolve":
            body = files["/".join(after[2:-1])]
            return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}, body
        if after[0] == "tree":
            oids = {f: hashlib.sha1(b).hexdigest() for f, b in files.items()}
            entries = [{"type": "file", "path": f, "size": len(b), "oid": oids[f]} for f, b in files.items()]
            return 200, {}, json.dumps(entries).encode()
        siblings = [{"rfilename": f} for f in files]
        return 200, {}, json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": siblings}).encode()


@contextmanager
def served(hub: Hub) -> Iterator[str]:
    """Serves a hub; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that the server looks for

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def lay_out(cache: Path, name: str, folder: Path, *, under: str = "", commit: str = COMMIT, ref: str = "main") -> Path:
    """Lays a repository out as the hub's client does: refs, snapshots of links, blobs by hash; returns the snapshot."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for path in (p for p in folder.rglob("*") if p.is_file()):
        blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link = snapshot / under / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(place).parts) - 1)) / "blobs" / blob.name)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / ref).write_text(commit)
    return snapshot
