"""Rewriters, the remote one against a server of its own on this machine."""

import contextlib
import http.server
import json
import socket
import sys
import threading

import pytest

from walt.generation.rewriter import KEY, MAX_BYTES, MAX_CHARACTERS, RewriterError, make_rewriter


def rules(tmp_path, value):
    (tmp_path / "rules.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return make_rewriter(f"rules:{tmp_path / 'rules.json'}")


def test_rules_replace_whole_words_at_once(tmp_path):
    rewriter = rules(tmp_path, {"replace": {"car": "bus", "red car": "truck", "Bus": "car"}, "after": ", by day"})
    assert rewriter("A Car, a red car, a bus and a cart") == "A bus, a truck, a car and a cart, by day"
    assert rewriter.name == "rules:rules.json"
    assert rules(tmp_path, {"before": "film: "})("x") == "film: x"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "cannot be used"),
        ([], "it must be dict"),
        ({"replaces": {}}, "'replaces' is none of replace, before, after"),
        ({"replace": {"a": 1}}, r"replace.a must be str"),
        ({"replace": {"": "x"}}, "empty word"),
        (" " * (MAX_BYTES + 1), "more than"),
    ],
)
def test_rules_that_are_none(tmp_path, value, message):
    with pytest.raises(RewriterError, match=message):
        rules(tmp_path, value)


def test_no_rules_at_all(tmp_path):
    with pytest.raises(RewriterError, match=r"nowhere\.json cannot be read: No such file"):
        make_rewriter(f"rules:{tmp_path / 'nowhere.json'}")


def python(code, **options):
    return make_rewriter(f"command:{sys.executable} -c '{code}'", **options)


def test_a_command_reads_the_prompt_and_no_shell_reads_anything(tmp_path):
    rewriter = python("import sys; print(sys.stdin.read().upper())")
    assert rewriter("a ball; touch x\n$(ls)") == "A BALL; TOUCH X $(LS)" and "/" not in rewriter.name
    assert make_rewriter("command:/bin/echo '$HOME;' `ls`")("x") == "$HOME; `ls`"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('import sys; sys.exit("no model here")', "failed with status 1: no model here"),
        ("pass", "makes nothing of 'a ball'"),
        (f'print("x" * {MAX_CHARACTERS + 1})', "more than 4,000"),
        ('import sys; sys.stdout.buffer.write(b"\\xff")', "not UTF-8"),
    ],
)
def test_commands_that_fail(code, message):
    with pytest.raises(RewriterError, match=message):
        python(code)("a ball")


def test_a_command_that_takes_for_ever_or_is_none():
    with pytest.raises(RewriterError, match=r"took longer than 0\.2 seconds"):
        python("import time; time.sleep(60)", timeout=0.2)("a ball")
    with pytest.raises(RewriterError, match="/no/program cannot be run: No such file"):
        make_rewriter("command:/no/program")("a ball")
    for text, message in (
        ("command:", "there is no program"),
        ("command:'x", "cannot be read"),
        ("magic", "a rewriter is"),
    ):
        with pytest.raises(RewriterError, match=message):
            make_rewriter(text)
    with pytest.raises(RewriterError, match="must be positive"):
        make_rewriter("command:x", timeout=0)


@pytest.fixture
def server():
    """A chat server: `replies` are (status, body) to be given one after the other, `requests` what has come."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append((self.path, dict(self.headers), body))
            status, reply = server.replies.pop(0)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"http://127.0.0.1:{server.server_port}/elsewhere")
            self.end_headers()
            self.wfile.write(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.replies = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def remote(server, **options):
    return make_rewriter(f"http://127.0.0.1:{server.server_port}/v1/", pause=0.01, **options)


def said(text):
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def test_a_chat_server_rewrites(server, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    server.replies.append((200, said("A red ball\nrolls.")))
    rewriter = remote(server, model="tiny")
    assert rewriter("a ball") == "A red ball rolls."
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "tiny" and body["messages"][-1] == {"role": "user", "content": "a ball"}
    assert rewriter.name == f"http:127.0.0.1:{server.server_port}" and "secret" not in repr(rewriter)


def test_what_may_pass_is_tried_again_and_the_rest_is_not(server, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    server.replies += [(503, {}), (429, {}), (200, said("x"))]
    assert remote(server)("a ball") == "x" and "Authorization" not in server.requests[0][1]
    for replies, message in (
        ([(500, {})] * 3, "answers 500"),
        ([(401, {})], "answers 401"),
        ([(302, {})], "answers 302"),
    ):
        server.replies, server.requests = list(replies), []
        with pytest.raises(RewriterError, match=message):
            remote(server)("a ball")
        assert len(server.requests) == len(replies) and all(
            path == "/v1/chat/completions" for path, *_ in server.requests
        )


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html>", "another form than a chat's"),
        ({"choices": []}, "another form"),
        ({"choices": [{"text": "x"}]}, "'message' is missing"),
        (said(None), "content must be str"),
        (said(" "), "makes nothing of"),
        (b"\xff", "not UTF-8"),
        (b"[" * 1000, "nested"),
        (b" " * (MAX_BYTES + 1), "more than"),
    ],
)
def test_answers_that_are_none(server, reply, message):
    server.replies.append((200, reply))
    with pytest.raises(RewriterError, match=message):
        remote(server)("a ball")


def test_addresses_that_are_none(server, monkeypatch):
    server.replies.append((200, b""))
    closed = remote(server, retries=0)
    server.shutdown()
    server.server_close()
    with pytest.raises(RewriterError, match="cannot be reached: Connection re"):
        closed("a ball")
    for address, message in (
        ("http:///v1", "names no host"),
        ("http://[::1/v1", "cannot be read"),
        ("http://c:x/v1", "cannot be read"),
        ("http://a..b/v1", "cannot be read"),
        (f"http://{'a' * 64}.b/v1", "cannot be read"),
        ("http://c/v 1", "cannot be read: write what is"),
        ("http://c/é", "cannot be read: write what is"),
        ("https://a:b@c/v1", "no more than"),
        ("https://c?key=x", KEY),
    ):
        with pytest.raises(RewriterError, match=message):
            make_rewriter(address)
    monkeypatch.setenv(KEY, "secret")
    with pytest.raises(RewriterError, match="use an address with https"):
        make_rewriter("http://example.com/v1")


def test_a_key_is_one_line_and_is_never_shown(server, monkeypatch):
    monkeypatch.setenv(KEY, " secret\n")
    server.replies.append((200, said("x")))
    rewriter = remote(server)
    assert rewriter("a ball") == "x" and server.requests[0][1]["Authorization"] == "Bearer secret"
    for key in ("secret\nsecret", "secret\x01x", "sécret", "secret\u2026"):
        monkeypatch.setenv(KEY, key)
        for call in (lambda: remote(server), lambda: rewriter("a ball")):
            with pytest.raises(RewriterError, match="one line of printable ASCII") as error:
                call()
            assert "cret" not in str(error.value)


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(sent):
    """Neither in its answer nor in the lines before it."""
    ended = threading.Event()

    def trickle():
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(sent)
            while not ended.wait(0.05):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=trickle, daemon=True).start()
        slow = make_rewriter(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", timeout=0.4, retries=0)
        guard = threading.Timer(5, ended.set)  # so that a client that waits fails instead of hanging
        guard.start()
        with pytest.raises(RewriterError, match=r"does not answer within 0\.4 seconds"):
            slow("a ball")
        guard.cancel()
        ended.set()
