"""Writing to the fake hub: repositories are made, objects uploaded, commits made of them."""

import base64
import hashlib
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from hub_repos import Blob, Repo, is_large

if TYPE_CHECKING:
    from fake_hub import FakeHub

REPO = r"(?P<repo>(?:models|datasets)/[^/]+/[^/]+)"
NAMED = r"(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
UPLOAD_ROUTES = {
    "GET /api/whoami-v2": "whoami",
    "POST /api/repos/create": "create",
    "POST /api/validate-yaml": "validate",
    f"POST /api/{REPO}/preupload/(?P<revision>[^/]+)": "preupload",
    f"POST /api/{REPO}/commit/(?P<revision>[^/]+)": "commit",
    f"POST /{NAMED}\\.git/info/lfs/objects/batch": "batch",
    r"PUT /lfs/(?P<oid>\w+)": "store",
    r"PUT /lfs/(?P<oid>\w+)/(?P<part>\d+)": "store_part",
    r"POST /lfs/(?P<oid>\w+)/complete": "complete",
    "POST /verify": "verify",
}


class HubAnswers(BaseHTTPRequestHandler):
    """One connection to the hub, and what its answers have in common."""

    server: "FakeHub"  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    body: bytes

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def find(self, repo: str, revision: str = "main") -> tuple[Repo, str] | None:
        """Returns a repository and its commit; answers, and returns None, where there is none for this client."""
        known = self.server.repos.get(repo if repo.startswith(("datasets/", "models/")) else f"models/{repo}")
        known_to = known is not None and known.token in (
            None,
            self.headers.get("Authorization", "").removeprefix("Bearer "),
        )
        if known is None or not (known_to or (known.listed and self.path.startswith("/api/"))):
            code = "GatedRepo" if known and known.listed else "RepoNotFound"
            self.answer(401, headers={"X-Error-Code": code})
            return None
        if (commit := known.at(revision or "main")) is None:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
            return None
        return known, commit

    def json(self, content: object, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def answer(self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Uploads(HubAnswers):
    """Answers to requests that write."""

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('type', 'model')}s/{asked.get('organization') or 'user'}/{asked['name']}"
        if name in self.server.repos:
            url = f"{self.server.url}/{name.removeprefix('models/')}"
            return self.json({"error": "You already created this repo", "url": url}, status=409)
        self.server.repos[name] = Repo()
        self.server.repos[name].commit({}, message="initial commit")
        return self.json({"url": f"{self.server.url}/{name.removeprefix('models/')}", "name": name.partition("/")[2]})

    def validate(self) -> None:
        self.json({"errors": [], "warnings": []})

    def whoami(self) -> None:
        known = self.headers.get("Authorization", "").startswith("Bearer ")
        if known:
            return self.json({"name": "user", "type": "user", "orgs": []})
        return self.json({"error": "Invalid username or password."}, status=401)

    def preupload(self, repo: str, revision: str) -> None:
        if found := self.find(repo, revision):
            there = found[0].files[found[1]]
            self.json({"files": [self.mode(there, asked) for asked in json.loads(self.body)["files"]]})

    def mode(self, there: Mapping[str, Blob], asked: Mapping[str, Any]) -> dict[str, Any]:
        path, size = asked["path"], asked["size"]
        known = there.get(path)
        oid = known and (known.sha256 if known.lfs else known.oid)
        mode = "lfs" if is_large(path, size) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, **({"oid": oid} if oid else {})}

    def batch(self, repo: str) -> None:
        if self.find(repo):
            self.json(
                {"transfer": "basic", "objects": [self.action(asked) for asked in json.loads(self.body)["objects"]]}
            )

    def action(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Returns where an object is to be sent; nothing where it is stored already."""
        oid, size, part = asked["oid"], asked["size"], self.server.part_bytes
        if oid in self.server.objects:
            return {"oid": oid, "size": size}
        place = f"{self.server.url}/lfs/{oid}"
        upload: dict[str, Any] = {"href": place}
        if part is not None and size > part:
            numbers = range(1, -(-size // part) + 1)
            urls = {str(number): f"{place}/{number}" for number in numbers}
            upload = {"href": f"{place}/complete", "header": {"chunk_size": str(part), **urls}}
        verify = {"href": f"{self.server.url}/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def store(self, oid: str, content: bytes | None = None) -> None:
        content = self.body if content is None else content
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(422)
        self.server.objects[oid] = content
        return self.answer(200, headers={"ETag": f'"{oid[:32]}"'})

    def store_part(self, oid: str, part: str) -> None:
        self.server.parts.setdefault(oid, {})[int(part)] = self.body
        self.answer(200, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def complete(self, oid: str) -> None:
        parts = self.server.parts.pop(oid, {})
        self.store(oid, b"".join(parts[number] for number in sorted(parts)))

    def verify(self) -> None:
        asked = json.loads(self.body)
        same = len(self.server.objects.get(asked["oid"], b"")) == asked["size"]
        self.answer(200 if same else 404)

    def commit(self, repo: str, revision: str) -> None:
        """Makes a commit of the operations in the body; of objects that were not uploaded, none."""
        found = self.find(repo, revision)
        if found is None:
            return None
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, found[1]):
            return self.json({"error": "A commit has happened since. Please refresh and try again."}, status=412)
        tree = dict(found[0].files[found[1]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.json({"error": f"{value['path']}: object {value['oid']} was not uploaded"}, status=400)
                tree[value["path"]] = Blob(self.server.objects[value["oid"]], lfs=True)
            elif line["key"] in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/")
                tree = {name: blob for name, blob in tree.items() if name != gone and not name.startswith(f"{gone}/")}
        oid = found[0].commit(tree, revision, header["summary"])
        url = f"{self.server.url}/{repo.removeprefix('models/')}/commit/{oid}"
        return self.json({"success": True, "commitOid": oid, "commitUrl": url})
