"""The page's server, without a browser: what its functions do, and what it gives out of this machine."""

import http.client
import json
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from walt.data import media
from walt.generation.catalogue import INPUTS, OPTIONS
from walt.generation.record import generate, read_record

gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install walt[serve]")
gradio_client = pytest.importorskip("gradio_client")

from serving.serving import serving  # noqa: E402  # these import gradio

from walt.serving import page as pages  # noqa: E402

BALL = "a red ball moves left"


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Where what browsers send lies."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(studio, uploads):
    with serving(studio, uploads) as address:
        yield address


@pytest.fixture
def client(address):
    return gradio_client.Client(address, verbose=False, httpx_kwargs={"timeout": 60})


def fields(**values):
    """What the page sends, by name and in its order."""
    chosen = {"task": "generate", "prompt": BALL, "negative_prompt": ""}
    for name, kind in INPUTS.items():
        chosen |= {name: None, **({"frames": ""} if kind == "pictures" else {})}
    chosen |= {name: option.default for name, option in OPTIONS.items() if not option.rare}
    chosen |= {"seed": 3, "steps": 4, "guidance": 2.0, "num_frames": 5, "height": 16, "width": 16, "fps": None}
    chosen |= {name: option.default for name, option in OPTIONS.items() if option.rare}
    return chosen | values


def request(studio, **values):
    told = fields(**values)
    return studio.request(studio.asked(told.pop("task"), told))


def test_a_video_is_made_and_given_out_with_its_record(client, studio):
    job = client.submit(*fields().values(), api_name="/make")
    path = next(Path(value) for value in _strings(job.result(120)) if value.endswith(".mp4"))
    record = read_record(path)
    assert record == request(studio).record and record.seed == 3
    np.testing.assert_array_equal(media.read_video(path)[0].shape, (5, 256, 256, 3))
    assert any("Step " in text for output in job.outputs() for text in _strings(output))
    expected = generate(studio.model, record)[0]
    assert np.abs(media.read_video(path)[0][:, 8::16, 8::16].astype(int) - expected).mean() < 12  # through a codec


def _strings(value):
    """All texts within nested values."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [text for part in parts for text in _strings(part)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " "}, "prompt 0 is empty"),
        ({"steps": 401}, "400"),
        ({"height": 10**6}, "at most 64 pixels of height, got a request for 1000000"),
        ({"prompt": "(<b>ball</b>:9)"}, "&lt;b&gt;ball&lt;/b&gt;:9.* has a weight out of range"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(client, values, message):
    with pytest.raises(Exception, match=message):
        client.predict(*fields(**values).values(), api_name="/make")


def test_an_upload_is_used_and_a_bad_one_is_a_sentence(client, tmp_path):
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    told = fields(task="animate", image=gradio_client.handle_file(tmp_path / "grey.png"))
    path = next(
        Path(value) for value in _strings(client.predict(*told.values(), api_name="/make")) if value.endswith(".mp4")
    )
    assert read_record(path).task == "animate" and set(read_record(path).inputs) == {"image"}
    (tmp_path / "bad.png").write_bytes(b"no picture")
    told["image"] = gradio_client.handle_file(tmp_path / "bad.png")
    with pytest.raises(Exception, match=r"bad\.png cannot be read as an image") as error:
        client.predict(*told.values(), api_name="/make")
    assert "/" not in str(error.value)


def test_several_uploads_are_keyframes_and_a_text_is_a_storyboard(client, tmp_path):
    for name, value in (("a", 200), ("b", 50)):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    files = [gradio_client.handle_file(tmp_path / f"{name}.png") for name in "ab"]
    for told, expected in (
        (fields(task="keyframes", keyframes=files, frames="0, 4"), {"keyframes.0", "keyframes.4"}),
        (fields(task="storyboard", prompt="", storyboard=f"shots: [{{prompt: {BALL}, num_frames: 3}}]"), set()),
    ):
        shown = client.predict(*told.values(), api_name="/make")
        record = read_record(next(Path(value) for value in _strings(shown) if value.endswith(".mp4")))
        assert record.task == told["task"] and set(record.inputs) == expected


def test_frames_are_spread_over_a_video():
    assert pages.spread(["a", "b", "c"], 17.0) == "0, 8, 16" and pages.spread(["a"], 17) == "0"
    assert pages.spread(None, None) == "" and pages.spread(["a", "b"], 1) == "0, 0"


def test_requests_wait_for_each_other_and_a_stopped_one_ends(address, slow_steps):
    first, second = (gradio_client.Client(address, verbose=False, httpx_kwargs={"timeout": 60}) for _ in range(2))
    long = first.submit(*fields(steps=400).values(), api_name="/make")
    until = time.monotonic() + 120
    while not any("Step " in text for output in long.outputs() for text in _strings(output)):
        assert time.monotonic() < until
        time.sleep(0.05)
    short = second.submit(*fields().values(), api_name="/make")
    while not any("Waiting for 1 other request" in text for output in short.outputs() for text in _strings(output)):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "Stopping" in str(first.predict(api_name="/stop"))
    assert any(text.endswith(".mp4") for text in _strings(short.result(120)))
    assert not any(text.endswith(".mp4") for output in long.outputs() for text in _strings(output))


def get(address, path, method="GET", body=None, **headers):
    """(status, body) of a request, its path sent as it is."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    reply = connection.getresponse()
    return reply.status, reply.read()


SECRET = "the content of a file that is nobody's business"


def test_no_file_of_this_machine_is_given_out(address, tmp_path, root):
    (tmp_path / "secret.txt").write_text(SECRET)
    secret = tmp_path / "secret.txt"
    files = [secret, Path("/etc/passwd"), root / "setup.py", root / "walt" / "serve.py", Path("/proc/self/environ")]
    ways = [
        "/gradio_api/file=",
        "/file=",
        "/gradio_api/file/",
        "/file/",
        "/static/",
        "/assets/",
        "/gradio_api/proxy=",
        "/svelte/",
        "/gradio_api/stream/",
    ]
    for file in files:
        relative = "../" * 12 + str(file).lstrip("/")
        for name in (str(file), relative, f"./{relative}", f"x/{relative}", f"file://{file}", f"//{file}"):
            for way in ways:
                for quoted in (
                    name,
                    urllib.parse.quote(name, safe=""),
                    urllib.parse.quote(urllib.parse.quote(name, safe=""), safe=""),
                ):
                    status, body = get(address, way + quoted.replace(" ", "%20"))
                    shown = body.decode("utf-8", "replace")
                    assert (
                        SECRET not in shown
                        and "root:" not in shown
                        and "find_packages" not in shown
                        and "PATH=" not in shown
                    )
                    assert status >= 300 or "<!doctype html>" in shown[:200].lower(), (way + quoted, status)


def made(address, told):
    """What the page says of a request, as a browser that writes its own requests reads it."""
    body = json.dumps({"data": [None, *told.values()], "session_hash": "x"}).encode()
    _, reply = get(address, "/gradio_api/call/make", "POST", body, Content_Type="application/json")
    return get(address, f"/gradio_api/call/make/{json.loads(reply)['event_id']}")[1].decode()


@pytest.fixture
def fetched(monkeypatch):
    """The addresses from which the server fetches."""
    asked = []

    async def fetch(address, cache_dir):
        asked.append(address)
        raise OSError("there is no network")

    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_download", fetch)
    return asked


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ("generate", "prompt"),
        ("animate", "image"),
        ("edit", "video"),
        ("inpaint", "mask"),
        ("keyframes", "keyframes"),
        ("storyboard", "storyboard"),
    ],
)
def test_nothing_that_a_browser_names_is_taken_for_an_upload(address, uploads, fetched, tmp_path, task, field):
    """Neither a file of this machine nor an address is read, copied to the uploads, or fetched, in whatever field it is named."""
    (tmp_path / "secret.mp4").write_text(SECRET)
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "secret.png")
    before = sorted(uploads.rglob("*"))
    for path in (
        str(tmp_path / "secret.mp4"),
        str(tmp_path / "secret.png"),
        f"{uploads}/../{tmp_path.name}/secret.png",
        f"file://{tmp_path}/secret.png",
        "https://example.com/a.png",
        f"https://example.com{'/..' * 20}{uploads}/a.png",  # which, taken for a path, lies within the uploads
    ):
        named = {"path": path, "meta": {"_type": "gradio.FileData"}}
        reply = made(address, fields(task=task, **{field: [named] if field == "keyframes" else named}))
        assert "a file that was not uploaded is not read" in reply and ".mp4" not in reply
    assert sorted(uploads.rglob("*")) == before and not fetched


def test_gradio_too_takes_uploads_alone(address, uploads, monkeypatch, tmp_path):
    """Its own check, which it leaves out of pages that are mounted, stands behind that of the page."""
    monkeypatch.setattr(pages, "_paths", lambda sent: iter(()))
    (tmp_path / "secret.png").write_text(SECRET)
    before = sorted(uploads.rglob("*"))
    named = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    for field in ("prompt", "image"):
        assert "event: error" in made(address, fields(task="animate", **{field: named}))
    assert sorted(uploads.rglob("*")) == before


def test_a_storyboard_is_taken_from_an_upload_and_from_no_other_file(address, tmp_path):
    (tmp_path / "secret.yaml").write_text(SECRET)
    config = json.loads(get(address, "/config")[1])
    (button,) = (each["id"] for each in config["components"] if each["props"].get("elem_id") == "from_file")
    (number,) = (each["id"] for each in config["dependencies"] if each["inputs"] == [button])

    def run(path):
        value = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [value], "fn_index": number, "session_hash": "x"}).encode()
        return get(address, "/gradio_api/run/predict", "POST", body, Content_Type="application/json")

    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.yaml"\r\nContent-Type: text/yaml\r\n\r\n'
    body = head + b"shots: []" + b"\r\n--x--\r\n"
    _, reply = get(address, "/gradio_api/upload", "POST", body, Content_Type="multipart/form-data; boundary=x")
    status, reply = run(json.loads(reply)[0])
    assert status == 200 and json.loads(reply)["data"] == ["shots: []"]
    for path in (
        tmp_path / "secret.yaml",
        "/etc/passwd",
        f"file://{tmp_path}/secret.yaml",
        "http://127.0.0.1:1/a.yaml",
    ):
        status, reply = run(path)
        assert status == 500 and "a file that was not uploaded is not read" in reply.decode()


def test_it_fetches_nothing_and_answers_to_no_other_name(address):
    for name in ("http://127.0.0.1:1/x", "https://example.com/x", "HTTP://example.com"):
        for quoted in (name, urllib.parse.quote(name, safe="")):
            assert get(address, f"/gradio_api/file={quoted}")[0] == 403
    assert get(address, "/", Host="attacker.example")[0] == 400
    assert get(address, "/")[0] == 200
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert get(address, path)[0] in (404, 405) or b"openapi" not in get(address, path)[1]


def test_large_uploads_are_refused(address):
    def upload(size):
        head = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
        )
        body = head + bytes(size) + b"\r\n--x--\r\n"
        return get(address, "/gradio_api/upload", "POST", body, Content_Type="multipart/form-data; boundary=x")[0]

    assert upload(1000) == 200 and upload(2**20 + 1) == 413


def test_a_port_that_is_taken_is_a_sentence():
    with (
        pages.bound("127.0.0.1", 0) as taken,
        pytest.raises(pages.ServingError, match=r"cannot be bound to 127\.0\.0\.1, port \d+: Address already in use"),
        pages.bound("127.0.0.1", taken.getsockname()[1]),
    ):
        pass
    with pytest.raises(pages.ServingError, match="cannot be bound"), pages.bound("no.such.host.invalid", 1):
        pass


def test_sampling_ends_with_a_page_that_is_interrupted(studio, monkeypatch):
    stopped = []

    class Interrupted:
        def run(self, sockets):
            raise KeyboardInterrupt

    monkeypatch.setattr(pages, "make_server", lambda *arguments: Interrupted())
    monkeypatch.setattr(pages.Studio, "stop", lambda self, owner=None: stopped.append(owner))
    monkeypatch.setattr(pages.signal, "signal", lambda *arguments: None)
    with pytest.raises(KeyboardInterrupt):
        pages.serve(studio.model, studio.limits, "127.0.0.1", 0, "WALT")
    assert stopped == [None]
