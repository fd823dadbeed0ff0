"""Downloads from a hub on this machine."""

import hashlib
import http.server
import io
import json
import threading
import zipfile

import numpy as np
import pytest

from omcda_jax.data import __main__ as command
from omcda_jax.data import formats, hub
from omcda_jax.data.episodes import Episodes
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

NAME = "core/smac_v1/tiny"
SPEC = EnvSpec(num_agents=2, obs_dim=3, state_dim=4, action_dim=2, discrete=True)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def episodes():
    random = np.random.default_rng(0)
    rows = 8
    action = random.integers(0, 2, (rows, 2)).astype(np.int32)
    reward = random.normal(size=rows).astype(np.float32)
    action[[3, 7]], reward[[3, 7]] = 0, 0
    return Episodes(
        obs=random.normal(size=(rows, 2, 3)).astype(np.float32),
        global_state=random.normal(size=(rows, 4)).astype(np.float32),
        avail=np.ones((rows, 2, 2), bool),
        action=action,
        reward=reward,
        length=np.array([3, 3], np.int32),
        terminated=np.ones(2, bool),
        won=np.zeros(2, bool),
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of an archive with one vault, as on the hub."""
    folder = tmp_path_factory.mktemp("archive")
    formats.write(folder / "tiny.vlt" / "Good", "vault", SPEC, episodes(), {})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.write(path, path.relative_to(folder))
    return packed.getvalue()


class Hub:
    """A server that answers as the hub does; it closes one transfer after `breaks_after` bytes.

    It sends nothing before `goes_on` is set.
    """

    def __init__(self, content):
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.breaks_after = None
        self.knows_ranges = True
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.ranges = []
        self.tokens = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *unused):
                pass

            def do_HEAD(self):
                hub.tokens.append(self.headers.get("Authorization"))
                if self.path != f"/datasets/{hub_name}/resolve/main/{NAME}.zip":
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Etag", f'"{hub.sha256}"')
                self.send_header("X-Linked-Size", str(len(hub.content)))
                self.send_header("ETag", f'"{hub.sha256}"')
                self.send_header("Content-Length", str(len(hub.content)))
                self.end_headers()

            def do_GET(self):
                if self.path.startswith(f"/api/datasets/{hub_name}/tree/main"):
                    files = [{"type": "file", "path": path, "oid": "0", "size": 1} for path in ("a.md", f"{NAME}.zip")]
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    self.wfile.write(json.dumps(files).encode())
                    return
                if self.path.startswith("/api/"):
                    self.send_error(404)
                    return
                hub.tokens.append(self.headers.get("Authorization"))
                hub.ranges.append(self.headers["Range"])
                hub.goes_on.wait(20)
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if hub.knows_ranges else 0
                self.send_response(206 if hub.knows_ranges else 200)
                self.send_header("Content-Length", str(len(hub.content) - start))
                self.end_headers()
                end, hub.breaks_after = hub.breaks_after, None
                self.wfile.write(hub.content[start:end])

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


hub_name = hub.REPOSITORY


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    served = Hub(archive)
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_a_downloaded_vault_reads_as_it_was_written(server, tmp_path, capsys):
    arguments = ["data", "download", f"{NAME}.zip", f"--endpoint={server.endpoint}", f"--out={tmp_path}"]
    assert command.main(arguments) == 0
    vault = tmp_path / NAME / "tiny.vlt" / "Good"
    assert str(vault) in capsys.readouterr().out
    np.testing.assert_array_equal(formats.read(vault).episodes.reward, episodes().reward)
    origin = json.loads((tmp_path / NAME / "origin.json").read_text())
    assert (origin["sha256"], origin["revision"]) == (server.sha256, COMMIT)
    assert command.main(["data", "verify", str(vault)]) == 0
    assert "files match" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "core/smac_v1").iterdir()] == ["tiny"]


def test_a_vault_may_be_the_archive_itself(tmp_path):
    formats.write(tmp_path / "Good", "vault", SPEC, episodes(), {})
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as file:
        for path in (path for path in (tmp_path / "Good").rglob("*") if path.is_file()):
            file.write(path, path.relative_to(tmp_path / "Good"))
    origin = dict.fromkeys(("repository", "file", "revision", "size", "sha256"), "")
    hub._unpack(origin, tmp_path / "tiny.zip", tmp_path / "tiny")
    assert hub._vaults(tmp_path / "tiny") == [tmp_path / "tiny"]
    assert command.main(["data", "verify", str(tmp_path / "tiny")]) == 0


def test_a_folder_that_is_there_is_not_fetched_again(server, tmp_path):
    first = hub.download(NAME, tmp_path, endpoint=server.endpoint)
    assert hub.download(NAME, tmp_path, endpoint=server.endpoint) == first
    assert len(server.ranges) == 1


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_download(server, tmp_path):
    (tmp_path / NAME).parent.mkdir(parents=True)
    (tmp_path / NAME).write_text("")
    with pytest.raises(ConfigError, match="tiny: expected a folder or nothing, found a file"):
        hub.download(NAME, tmp_path, endpoint=server.endpoint)
    assert not server.ranges


def test_of_two_downloads_at_once_one_fetches_and_the_other_waits(server, tmp_path):
    found, told = [], []
    server.goes_on.clear()

    def download(log):
        found.append(hub.download(NAME, tmp_path, endpoint=server.endpoint, log=log))

    first = threading.Thread(target=download, args=[lambda words: second.start()])

    def wait(words):
        told.append(words)
        server.goes_on.set()

    second = threading.Thread(target=download, args=[wait])
    first.start()
    first.join(60)
    second.join(60)
    assert len(server.ranges) == 1
    assert len(found) == 2 and found[0] == found[1] != []
    assert len(told) == 1 and "waiting for another process" in told[0]
    assert [path.name for path in (tmp_path / "core/smac_v1").iterdir()] == ["tiny"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_transfer_goes_on(server, tmp_path, knows_ranges):
    server.breaks_after, server.knows_ranges = 1000, knows_ranges
    with pytest.raises(DatasetError, match=rf"1000 of {len(server.content)} bytes.*the same command resumes"):
        hub.download(NAME, tmp_path, endpoint=server.endpoint)
    assert len(list(tmp_path.rglob("*.lock"))) == 1, "others may be waiting for it"
    assert hub.download(NAME, tmp_path, endpoint=server.endpoint)
    assert server.ranges == ["bytes=0-", "bytes=1000-"] and not list(tmp_path.rglob("*.lock"))


def test_another_archive_under_the_name_is_not_appended_to_the_first(server, tmp_path):
    server.breaks_after = 1000
    with pytest.raises(DatasetError):
        hub.download(NAME, tmp_path, endpoint=server.endpoint)
    server.content += b"\0"
    server.sha256 = hashlib.sha256(server.content).hexdigest()
    hub.download(NAME, tmp_path, endpoint=server.endpoint)
    assert server.ranges == ["bytes=0-", "bytes=0-"]


def test_damaged_bytes_are_refused_and_thrown_away(server, tmp_path):
    server.content = bytes(byte ^ (index == 500) for index, byte in enumerate(server.content))
    with pytest.raises(DatasetError, match=f"expected SHA-256 {server.sha256}, found"):
        hub.download(NAME, tmp_path, endpoint=server.endpoint)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_what_is_no_archive_is_refused(server, tmp_path):
    server.content = b"not a zip file"
    server.sha256 = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(DatasetError, match="expected a zip archive"):
        hub.download(NAME, tmp_path, endpoint=server.endpoint)


@pytest.mark.parametrize(
    "name, more, message",
    [
        ("core/smac_v1/huge", {}, "core/smac_v1/huge.zip at main: expected an archive on the hub"),
        (NAME, {"repository": "someone/else"}, "someone/else/core/smac_v1/tiny.zip"),
        ("../../etc/passwd", {}, "NAME: expected an archive's path"),
    ],
)
def test_what_is_not_there_is_named(server, tmp_path, name, more, message):
    with pytest.raises(ConfigError, match=message):
        hub.download(name, tmp_path, endpoint=server.endpoint, **more)


def test_no_hub_at_all(tmp_path, capsys):
    arguments = ["data", "download", NAME, "--endpoint=http://127.0.0.1:9", f"--out={tmp_path}"]
    assert command.main(arguments) == 78
    error = capsys.readouterr().err
    assert error.startswith("error: InstaDeepAI/og-marl/core/smac_v1/tiny.zip at main: the hub does not answer")
    assert error.count("\n") == 1


def test_the_token_goes_to_the_hub(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.download(NAME, tmp_path, endpoint=server.endpoint)
    assert server.tokens == ["Bearer secret"] * 2
