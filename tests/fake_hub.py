"""The Hugging Face hub on loopback: repositories with commits, listed in pages, read in ranges, and committed to.

It speaks what huggingface_hub asks of the hub: information and trees of a revision, files behind redirects as those in
large-file storage are, and uploads by preupload, LFS batch and commit. Of the storage called Xet it knows nothing;
`environment` and `serving` switch that off in the client.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_repos import Blob, Repo, is_large
from hub_uploads import NAMED, REPO, UPLOAD_ROUTES, Uploads


class FakeHub(ThreadingHTTPServer):
    """The hub at `url`.

    Attributes:
        repos: by `models/OWNER/NAME` or `datasets/OWNER/NAME`.
        objects: contents in large-file storage by their SHA-256.
        sent: bytes that were sent of each file, by `datasets/OWNER/NAME/PATH`.
        requests: method and path of each request.
        page: entries of a page of a tree.
        part_bytes: uploads of more go in parts of this size; None: in one.
        refuse: called with method and path; a status other than 0 is the answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage_url = (
            f"http://localhost:{self.server_port}"  # another host for the client, as the hub's storage is
        )
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.sent: Counter[str] = Counter()
        self.requests: list[str] = []
        self.page = 1000
        self.part_bytes: int | None = None
        self.refuse: Callable[[str, str], int] = lambda method, path: 0

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is part of the game

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which another process finds this hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}

    def put(self, repo: str, files: Mapping[str, bytes | None], ref: str = "main") -> str:
        """Commits files, None for one that goes away, to `datasets/OWNER/NAME`; returns the commit."""
        there = self.repos.setdefault(repo, Repo())
        tree = dict(there.files.get(there.refs.get(ref, ""), {}))
        tree |= {name: self.blob(name, content) for name, content in files.items() if content is not None}
        return there.commit({name: blob for name, blob in tree.items() if files.get(name, b"") is not None}, ref)

    def blob(self, name: str, content: bytes) -> Blob:
        blob = Blob(content, is_large(name, len(content)))
        if blob.lfs:
            self.objects[blob.sha256] = content
        return blob

    @contextmanager
    def serving(self, monkeypatch: Any) -> Iterator["FakeHub"]:
        """Serves while the context is open; huggingface_hub in this process talks to this hub meanwhile."""
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        with self:
            thread = threading.Thread(target=self.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self
            finally:
                self.shutdown()
                thread.join()


class HubHandler(Uploads):
    """One connection to the hub."""

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        self.path, _, query = self.path.partition("?")
        self.query = {name: values[0] for name, values in parse_qs(query).items()}
        self.body = self.read_body()
        asked = "GET" if self.command == "HEAD" else self.command
        self.server.requests.append(f"{self.command} {self.path}")
        if status := self.server.refuse(self.command, self.path):
            return self.answer(status)
        for pattern, method in ROUTES.items():
            if match := re.fullmatch(pattern, f"{asked} {self.path}"):
                return getattr(self, method)(**{name: unquote(text or "") for name, text in match.groupdict().items()})
        return self.answer(404)

    def info(self, repo: str, revision: str = "") -> None:
        if found := self.find(repo, revision):
            known, commit = found
            siblings = [{"rfilename": name} for name in known.files[commit]]
            self.json({"id": repo.partition("/")[2], "sha": commit, "siblings": siblings, "private": bool(known.token)})

    def tree(self, repo: str, revision: str, path: str = "") -> None:
        """Answers one page of a tree, with the address of the next one in its headers."""
        if found := self.find(repo, revision):
            entries = self.entries(found[0].files[found[1]], path.strip("/"))
            start = int(self.query.get("cursor", 0))
            stop = start + self.server.page
            query = f"recursive={self.query.get('recursive', 'false')}&cursor={stop}"
            link = {"Link": f'<{self.server.url}{self.path}?{query}>; rel="next"'}
            self.json(entries[start:stop], link if stop < len(entries) else {})

    def entries(self, files: Mapping[str, Blob], path: str) -> list[dict[str, Any]]:
        inside = {name: blob for name, blob in files.items() if not path or name.startswith(f"{path}/")}
        deep = self.query.get("recursive", "false").lower() == "true"
        folders: dict[str, None] = {}
        listed = []
        for name, blob in sorted(inside.items()):
            words = name.removeprefix(f"{path}/").split("/")
            above = [f"{path}/{'/'.join(words[:depth])}".lstrip("/") for depth in range(1, len(words))]
            folders |= dict.fromkeys(above if deep else above[:1])
            if deep or len(words) == 1:
                listed.append(blob.entry(name))
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders] + listed

    def paths_info(self, repo: str, revision: str) -> None:
        if found := self.find(repo, revision):
            files = found[0].files[found[1]]
            asked = parse_qs(self.body.decode()).get("paths", [])
            self.json([files[name].entry(name) for name in asked if name in files])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        """Answers a file: one in large-file storage by a redirect to where it lies."""
        found = self.find(repo, revision)
        if found is None:
            return
        blob = found[0].files[found[1]].get(path)
        headers = {"X-Repo-Commit": found[1]}
        if blob is None:
            self.answer(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        elif blob.lfs:
            headers |= {"X-Linked-Size": str(len(blob.content)), "X-Linked-ETag": f'"{blob.sha256}"'}
            self.answer(
                302, headers={**headers, "Location": f"{self.server.storage_url}/lfs/{blob.sha256}?of={repo}/{path}"}
            )
        else:
            self.ranged(f"{repo}/{path}", blob.content, {**headers, "ETag": f'"{blob.oid}"'})

    def stored(self, oid: str) -> None:
        if oid not in self.server.objects:
            return self.answer(404)
        return self.ranged(self.query.get("of", oid), self.server.objects[oid], {"ETag": f'"{oid[:32]}"'})

    def ranged(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """Answers the part of a content that the request asks for."""
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
            if start >= len(content):
                return self.answer(416, headers={"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content, status = content[start:stop], 206
        if self.command == "GET":
            self.server.sent[name] += len(content)
        return self.answer(status, content, headers)


ROUTES = {
    f"GET /api/{REPO}(?:/revision/(?P<revision>[^/]+))?": "info",
    f"GET /api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?": "tree",
    f"POST /api/{REPO}/paths-info/(?P<revision>[^/]+)": "paths_info",
    f"GET /{NAMED}/resolve/(?P<revision>[^/]+)/(?P<path>.*)": "resolve",
    r"GET /lfs/(?P<oid>\w+)": "stored",
    **UPLOAD_ROUTES,
}
