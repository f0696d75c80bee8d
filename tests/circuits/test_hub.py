"""Fetching from the hub, against a hub of our own on this machine."""

import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits import load_dictionaries, save_dictionaries, sources
from circuits.formats.native import FORMAT as NATIVE_FORMAT
from circuits.hub import fetch, fetch_folder
from circuits.releases import Release, releases
from tests import models

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub:
    """Serves files as the hub does, and counts what is asked of it."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.files: dict[str, bytes] = {}
        self.stated: dict[str, str] = {}
        self.fetched: list[str] = []
        self.ranges: list[str] = []
        self.gated = False
        self.cut: dict[str, int] = {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler, *, with_body: bool) -> None:
        head = f"/{self.repository}/resolve/main/"
        head_at = f"/{self.repository}/resolve/{_COMMIT}/"
        api = f"/api/models/{self.repository}"
        path = request.path.partition("?")[0]
        if path.startswith(api):
            listed = ", ".join(f'{{"rfilename": "{name}"}}' for name in self.files)
            tree = ", ".join(
                f'{{"type": "file", "path": "{name}", "size": {len(data)}, "oid": "0"}}'
                for name, data in self.files.items()
            )
            body = f"[{tree}]" if "/tree/" in path else ""
            record = f'{{"id": "{self.repository}", "sha": "{_COMMIT}", "siblings": [{listed}]}}'
            self._send(request, 200, (body or record).encode(), {}, with_body)
            return
        name = path.removeprefix(head).removeprefix(head_at)
        if self.gated:
            self._send(request, 403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        elif not path.startswith((head, head_at)):
            self._send(request, 404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        elif name not in self.files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT}
            self._send(request, 404, b"", headers, with_body)
        else:
            data = self.files[name]
            etag = self.stated.get(name, hashlib.sha256(data).hexdigest())
            headers = {"X-Repo-Commit": _COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
            if with_body:
                self.fetched.append(name)
            part = request.headers.get("Range")
            if with_body and part:
                self.ranges.append(part)
                start = int(part.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self._send(request, 206, data[start:], headers, with_body)
                return
            cut = self.cut.pop(name, None) if with_body else None
            self._send(request, 200, data, headers, with_body, cut)

    def _send(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str],
        with_body: bool,
        cut: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if with_body:
            request.wfile.write(body[:cut])
        if cut is not None:
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    from huggingface_hub import constants

    served = _Hub("someone/dictionaries")
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the hub's own attempts
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_fetch_downloads_once(hub: _Hub) -> None:
    hub.files = {"a.txt": b"one", "deep/b.txt": b"two"}
    folder = fetch("someone/dictionaries", ["a.txt", "deep/b.txt"])
    assert (folder / "a.txt").read_bytes() == b"one"
    assert (folder / "deep" / "b.txt").read_bytes() == b"two"
    assert hub.fetched == ["a.txt", "deep/b.txt"]
    assert fetch("someone/dictionaries", ["deep/b.txt"]) == folder
    assert hub.fetched == ["a.txt", "deep/b.txt"]


def test_cached_files_need_no_hub(hub: _Hub) -> None:
    hub.files = {"a.txt": b"one"}
    folder = fetch("someone/dictionaries", ["a.txt"])
    hub.server.shutdown()
    hub.server.server_close()
    assert fetch("someone/dictionaries", ["a.txt"]) == folder


def test_broken_connection_goes_on(hub: _Hub) -> None:
    hub.files, hub.cut = {"a.bin": bytes(range(256)) * 64}, {"a.bin": 5000}
    folder = fetch("someone/dictionaries", ["a.bin"])
    assert (folder / "a.bin").read_bytes() == hub.files["a.bin"]
    assert hub.ranges == ["bytes=5000-"]


def test_set_cut_off_goes_on_with_the_missing_file(hub: _Hub) -> None:
    hub.files = {"a.txt": b"one"}
    with pytest.raises(ValueError, match=r"cannot fetch b.txt"):
        fetch("someone/dictionaries", ["a.txt", "b.txt"])
    hub.files["b.txt"] = b"two"
    folder = fetch("someone/dictionaries", ["a.txt", "b.txt"])
    assert (folder / "b.txt").read_bytes() == b"two"
    assert hub.fetched == ["a.txt", "b.txt"]


def test_missing_file_and_repository(hub: _Hub) -> None:
    hub.files = {"a.txt": b"one"}
    with pytest.raises(ValueError, match=r"cannot fetch b.txt of someone/dictionaries: the repos"):
        fetch("someone/dictionaries", ["b.txt"])
    with pytest.raises(ValueError, match=r"there is no such repository"):
        fetch("someone/else", ["b.txt"])
    with pytest.raises(ValueError, match=r"no file of someone/dictionaries was asked for"):
        fetch("someone/dictionaries", [])


def test_gated_repository(hub: _Hub) -> None:
    hub.files, hub.gated = {"a.txt": b"one"}, True
    with pytest.raises(ValueError, match=r"accept its terms on the hub and log in"):
        fetch("someone/dictionaries", ["a.txt"])


def test_offline(hub: _Hub) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(ValueError, match=r"hf download someone/dictionaries a.txt"):
        fetch("someone/dictionaries", ["a.txt"])
    with pytest.raises(ValueError, match=r"the hub cannot be reached"):
        fetch_folder("someone/dictionaries", "")


def test_damaged_download_is_removed(hub: _Hub) -> None:
    hub.files = {"a.bin": b"x" * 100}
    hub.stated = {"a.bin": hashlib.sha256(b"y" * 100).hexdigest()}
    with pytest.raises(ValueError, match=r"a.bin arrived damaged and was removed"):
        fetch("someone/dictionaries", ["a.bin"])
    hub.stated = {}
    assert (fetch("someone/dictionaries", ["a.bin"]) / "a.bin").read_bytes() == b"x" * 100


def _serve(hub: _Hub, folder: Path, under: str = "") -> None:
    for path in folder.iterdir():
        hub.files[under + path.name] = path.read_bytes()


def test_repository_by_address(hub: _Hub, tmp_path: Path) -> None:
    made = {"mlp.0": models.transcoder(), "mlp.1": models.transcoder(seed=1)}
    assert NATIVE_FORMAT.write is not None
    NATIVE_FORMAT.write(made, tmp_path / "made", "toy")
    _serve(hub, tmp_path / "made", "run/")
    found = load_dictionaries("hf:someone/dictionaries/run")
    assert list(found) == ["mlp.0", "mlp.1"]
    torch.testing.assert_close(found["mlp.1"].W_enc, made["mlp.1"].W_enc)
    with pytest.raises(ValueError, match=r"has nothing at 'walk'"):
        load_dictionaries("hf:someone/dictionaries/walk")
    with pytest.raises(ValueError, match=r"want hf:OWNER/NAME"):
        load_dictionaries("hf:someone")


def _release(**facts: Any) -> Release:
    """Three layers of the repository that is served."""
    common = {"what": "", "licence": "", "model": "toy", "n_layers": 3}
    return Release(name="made-up", repository="someone/dictionaries", **common, **facts)


def test_published_set(hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the layers asked for are fetched, and what they hold comes out."""
    made = {f"resid_pre.{i}": models.sae("resid_pre", "relu", seed=i) for i in range(3)}
    save_dictionaries(made, tmp_path / "made", format="saelens", model="toy")
    for i in range(3):
        _serve(hub, tmp_path / "made" / f"resid_pre.{i}", f"blocks.{i}/")
    release = _release(format="saelens", site="resid_pre", template="blocks.{layer}")
    monkeypatch.setattr(sources, "releases", lambda: {"made-up": release})
    found = load_dictionaries("made-up", layers=[2])
    assert list(found) == ["resid_pre.2"]
    assert hub.fetched == ["blocks.2/cfg.json", "blocks.2/sae_weights.safetensors"]
    x = torch.randn(5, models.D_MODEL)
    torch.testing.assert_close(found["resid_pre.2"](x), made["resid_pre.2"](x))
    assert list(load_dictionaries("made-up")) == ["resid_pre.0", "resid_pre.1", "resid_pre.2"]
    with pytest.raises(ValueError, match=r"made-up has the dictionaries .* none of them in layers"):
        load_dictionaries("made-up", layers=[7])


def test_published_set_of_one_checkpoint(
    hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {f"mlp.{i}": models.transcoder("relu", seed=i) for i in range(3)}
    save_dictionaries(made, tmp_path / "made", format="circuit-tracer", model="toy")
    _serve(hub, tmp_path / "made")
    release = _release(format="circuit-tracer", site="mlp")
    monkeypatch.setattr(sources, "releases", lambda: {"made-up": release})
    found = load_dictionaries("made-up", layers=[1])
    assert list(found) == ["mlp.1"]
    assert hub.fetched == ["config.yaml", "layer_1.safetensors"]
    x = torch.randn(5, models.D_MODEL)
    torch.testing.assert_close(found["mlp.1"](x), made["mlp.1"](x))


def test_every_release_is_whole() -> None:
    from circuits.formats.registry import FORMATS

    known = {entry.name for entry in FORMATS}
    table = releases()
    assert len(table) > 100
    for release in table.values():
        assert release.format in known
        assert release.repository.count("/") == 1
        assert bool(release.places) != bool(release.n_layers)
        assert release.paths
        for place in release.paths:
            site, _, layer = place.rpartition(".")
            assert site in ("mlp", "resid_pre", "resid_post", "attn_out", "mlp_out")
            assert layer.isdigit()
            assert all(name and not name.startswith("/") for name in release.files(place))


def test_release_template() -> None:
    release = Release(
        name="x",
        repository="a/b",
        format="saelens",
        model="gpt2",
        what="",
        licence="",
        site="resid_pre",
        template="blocks.{layer}",
        n_layers=2,
    )
    assert release.paths == {"resid_pre.0": "blocks.0", "resid_pre.1": "blocks.1"}
    assert release.files("resid_pre.1") == (
        "blocks.1/cfg.json",
        "blocks.1/sae_weights.safetensors",
    )
