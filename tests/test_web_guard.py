"""What `llava-web` refuses: strangers, other sites, other names, addresses of its own network, and made-up bodies."""

from __future__ import annotations

import http.server
import json
import threading

import httpx
import pytest
from scene_fixtures import PATH, QUESTION
from web_fixtures import question, serving

from llava.model.images import Limits
from llava.serve.images import download, is_public


@pytest.fixture(scope="module")
def server():
    with serving(token="s3cret", allow_origin=["https://friend.example"], max_megabytes=0.5, max_images=1) as made:
        yield made


@pytest.fixture(scope="module")
def plain():
    with serving() as made:
        yield made


def test_a_token_is_asked_of_everything_but_the_pages_own_files(server):
    stranger = httpx.Client(base_url=server.url)
    for path, status in (("/", 200), ("/health", 200), ("/page/app.js", 200), ("/v1/models", 401), ("/metrics", 401)):
        assert stranger.get(path).status_code == status
    assert stranger.post("/api/inspect", json={"messages": question("?")}).json()["error"]["code"] == "invalid_api_key"
    wrong = stranger.get("/v1/models", headers={"Authorization": "Bearer s3cre"})
    assert wrong.status_code == 401 and server.http.get("/v1/models").status_code == 200
    assert server.ask(question(QUESTION, PATH)).choices[0].message.content == "NUT"


def test_no_file_is_served_but_the_pages(server):
    for path in ("/page/../command.py", "/page/%2e%2e/command.py", "/page//etc/passwd", "/page/..%2f..%2fapp.py"):
        assert server.http.get(path).status_code == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_of_other_sites_are_refused(plain, server, method):
    evil = {"Origin": "https://evil.example"}
    for one in (plain, server):
        assert one.http.request(method, "/v1/models", headers=evil, json={}).status_code == 403
    friend = server.http.get("/v1/models", headers={"Origin": "https://friend.example"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    own = plain.http.get("/v1/models", headers={"Origin": plain.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    assert "default-src 'none'" in own.headers["content-security-policy"]


def test_other_names_and_types_are_refused(plain):
    assert plain.http.get("/v1/models", headers={"Host": "rebound.example"}).status_code == 403
    port = plain.url.rpartition(":")[2]
    assert plain.http.get("/v1/models", headers={"Host": f"localhost:{port}"}).status_code == 200
    form = plain.http.post("/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"})
    assert form.status_code == 415


def test_a_body_beyond_the_limit_is_refused_with_and_without_its_length(server):
    large = b"x" * 2_000_000
    json_type = {"Content-Type": "application/json"}
    assert server.http.post("/v1/chat/completions", content=large, headers=json_type).status_code == 413
    chunks = (large[:65536] for _ in range(40))
    assert server.http.post("/v1/chat/completions", content=chunks, headers=json_type).status_code == 413


PRIVATE = "127.0.0.1 10.1.2.3 169.254.169.254 192.168.0.1 172.16.0.1 100.64.0.1 0.0.0.0 224.0.0.1 ::1 fe80::1 fd00::1 "
PRIVATE += "::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: ::"


def test_public_addresses_are_told_from_the_machines_own_network():
    assert [one for one in PRIVATE.split() if is_public(one)] == []
    assert all(map(is_public, ("93.184.216.34", "8.8.8.8", "2606:4700::1111")))


class Redirecting(http.server.BaseHTTPRequestHandler):
    """/to/… redirects there; anything else is the picture."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        content = PATH.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_port
        made.shutdown()


def test_downloads_reach_allowed_addresses_only_also_by_redirects(site):
    limits, here = Limits(seconds=10, megabytes=1), f"127.0.0.1:{site}"
    assert download(f"http://{here}/a.png", limits, lambda address: True) == PATH.read_bytes()
    Redirecting.asked.clear()
    names = (here, f"localhost:{site}", f"2130706433:{site}", f"[::ffff:127.0.0.1]:{site}", f"[::1]:{site}")
    for name in names:
        with pytest.raises(ValueError, match="not a public address|cannot be fetched"):
            download(f"http://{name}/a.png", limits, is_public)
    assert Redirecting.asked == []  # nothing was sent
    first = []
    with pytest.raises(ValueError, match="not a public address"):
        download(
            f"http://{here}/to/http://localhost:{site}/a", limits, lambda address: not first and not first.append(1)
        )
    assert len(Redirecting.asked) == 1
    with pytest.raises(ValueError, match="cannot be fetched"):
        download(f"http://{here}/to/file:///etc/passwd", limits, lambda address: True)


def test_the_server_fetches_public_urls_only(site):
    with serving(image_urls=True) as made:
        answer = made.http.post("/v1/chat/completions", json={"messages": question("?", f"http://127.0.0.1:{site}/a")})
    assert answer.status_code == 400 and "not a public address" in answer.json()["error"]["message"]


def test_made_up_bodies_never_bring_the_server_down(plain):
    """300 of them; `llava.eval.bench_server --fuzz` sends as many as it is told."""
    from llava.eval.timing.server_load import fuzz

    statuses = fuzz(plain.url, 300, seed=1)
    assert set(statuses) <= {200, 400, 404, 405, 413, 415, 422} and statuses[400] > 50
    assert plain.ask(question(QUESTION, PATH)).choices[0].message.content == "NUT"
    assert plain.http.get("/health").status_code == 200


def test_deep_and_torn_json(plain):
    for content in ("[" * 100_000, '{"messages":' + '{"a":' * 50_000, '{"messages"', "\xff", ""):
        answer = plain.http.post(
            "/v1/chat/completions", content=content.encode("latin-1"), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400 and json.loads(answer.text)["error"]["message"]
