"""A model hub on this machine: the few addresses of the real one that downloads ask for, over folders on disk."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


class Hub:
    """Serves ``models``, ``{name: {revision: folder}}``, to huggingface_hub; ``gated`` ones to the holder of TOKEN.

    ``asked``: every request, as ``METHOD path``. ``slow``: how files end that are not sent until ``hurry`` is set.
    Use it in a with statement.
    """

    def __init__(self, models, *, gated=(), slow=None):
        self.models = models
        self.slow, self.hurry = slow, threading.Event()
        self.gated = gated
        self.asked = []

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            def log_message(self, *_):
                pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.hurry.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def constants(self):
        """What huggingface_hub.constants say where HF_ENDPOINT names this hub."""
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        return {"ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_DISABLE_XET": True}

    @property
    def downloads(self):
        """The files that were sent, in order."""
        return [line.split("/", 5)[5] for line in self.asked if line.startswith("GET") and "/resolve/" in line]

    def commit(self, name, revision):
        """The commit of a revision, which is a digest of its files; None where there is no such revision."""
        for known, folder in self.models[name].items():
            commit = digest(folder)
            if revision in (known, commit):
                return commit, folder
        return None


def digest(folder):
    """A commit's name for a folder: a digest of its files."""
    total = hashlib.sha1()
    for path in files(folder):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def lay_out(cache, name, folder, *, revision="main", commit=None, keep=lambda path: True):
    """A snapshot of a folder in a hub cache, as a download leaves it; ``keep``: which files are there."""
    commit = commit or digest(folder)
    base = cache / f"models--{name.replace('/', '--')}"
    for path in filter(keep, files(folder)):
        target = base / "snapshots" / commit / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / revision).write_text(commit)
    return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} /{path}")
        pieces = path.split("/")
        api = pieces[:2] == ["api", "models"]
        owner, model, what, *rest = (*(pieces[2:] if api else pieces), "", "")
        name = f"{owner}/{model}"
        if name not in self.hub.models:
            return self._refuse(401 if self.headers.get("Authorization") is None else 404, "RepoNotFound")
        if not api and name in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "GatedRepo")
        revision = "main" if what == "" else rest[0]
        found = self.hub.commit(name, revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        commit, folder = found
        names = [path.relative_to(folder).as_posix() for path in files(folder)]
        if api and what == "tree":
            sizes = [(folder / n).stat().st_size for n in names]
            return self._json([{"type": "file", "path": n, "size": s, "oid": "0"} for n, s in zip(names, sizes)])
        if api:
            siblings = [{"rfilename": name} for name in names]
            return self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})
        return self._file(folder / "/".join(part for part in rest[1:] if part), commit)

    def _file(self, path, commit):
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        if self.command == "GET" and self.hub.slow and str(path).endswith(self.hub.slow):
            self.hub.hurry.wait(60)
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status, code):
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
