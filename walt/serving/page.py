"""The page: what it shows, and what happens when a button is pressed. Only here is Gradio known."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fastapi
import gradio
import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from walt.data import media
from walt.generation.cascade import Cascade
from walt.generation.catalogue import INPUTS, OPTIONS, SIZES, TASKS, Option
from walt.serving import show
from walt.serving.jobs import Stopped, Waiting
from walt.serving.limits import Limits
from walt.serving.studio import FRAMES, Preview, Studio, Video

SHOWN = 24
"""Videos in the gallery of one visitor."""
LOCAL = ("127.0.0.1", "localhost", "::1")
HOUR = 3600
FILES = {
    "image": media.IMAGE_SUFFIXES,
    "mask": media.IMAGE_SUFFIXES,
    "video": media.VIDEO_SUFFIXES,
    "pictures": media.IMAGE_SUFFIXES,
    "storyboard": (".json", ".yaml", ".yml"),
}
EXAMPLE = """shots:
- prompt: what the first shot should show
  seconds: 2
- prompt: and the next
  num_frames: 24
  transition: morph  # cut, continue or morph
"""
PROMPTS: dict[str, dict[str, Any]] = {
    "prompt": {"label": "Prompt", "placeholder": "what the video should show", "visible": True},
    "prompts": {
        "label": "Prompts, a line for each window; the last one stays",
        "placeholder": "what the video should show at first\nand then",
        "visible": True,
    },
    "shots": {"visible": False},
}
"""The field for prompts, by how a task takes them."""

TASK_FIELDS = (*INPUTS, *OPTIONS, *SIZES)
CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
#stage { min-height: 400px; display: flex; align-items: center; justify-content: center; text-align: center; }
#stage img { width: 400px; max-width: 100%; border-radius: 8px; opacity: .85; }
#stage img, #gallery img, #result video { image-rendering: pixelated; }
#gallery .grid-wrap { height: auto !important; max-height: none !important; min-height: 0 !important; }
#another { align-self: end; margin-bottom: 10px; }
.walt-bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); margin-top: 6px; overflow: hidden; }
.walt-bar div { height: 100%; background: var(--color-accent); transition: width .3s; }
.walt-facts { border-collapse: collapse; width: 100%; font-size: 14px; }
.walt-facts, .walt-facts tr, .walt-facts td { border: none !important; }
.walt-facts td { padding: 2px 12px 2px 0; vertical-align: top; overflow-wrap: anywhere; }
.walt-facts td:first-child { color: var(--body-text-color-subdued); white-space: nowrap; width: 1%; }
.walt-hint { color: var(--body-text-color-subdued); }
"""


class ServingError(RuntimeError):
    """The page cannot be shown; the message says why."""


def serve(model: Cascade, limits: Limits, host: str, port: int, title: str) -> None:
    """Shows the page until it is interrupted. Raises `ServingError` where it cannot."""
    with tempfile.TemporaryDirectory(prefix="walt-serve-") as folder, bound(host, port) as listening:
        studio = Studio(model, limits, Path(folder))
        server = make_server(studio, host, title, Path(folder) / "uploads")
        print(f"{title} is shown on http://{_in_url(host)}:{listening.getsockname()[1]} (stop with Ctrl-C)", flush=True)
        if host not in LOCAL:
            print(f"bound to {host}: whoever can reach this machine can use the page; there is no password", flush=True)
        # The server passes signals on once it has ended; by default this one would leave the folder behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            server.run(sockets=[listening])
        finally:  # of Ctrl-C too, which the server passes on
            studio.stop()


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there; port 0 is any that is free. Raises `ServingError` if it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ServingError(f"the page cannot be bound to {host}, port {port}: {said}") from error
    with listening:
        yield listening


def make_server(studio: Studio, host: str, title: str, uploads: Path) -> uvicorn.Server:
    """The page's server, not yet running. Besides the page itself, it gives out files of `uploads` alone, where Gradio puts what browsers send and
    copies of what they are shown."""
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    # Pages of other names that resolve to this machine must not speak to this one.
    hosts = ["localhost", "127.0.0.1", "[::1]"] if host in LOCAL else ["*"]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(NoFetching)]
    page = build(studio, title, uploads)
    page.has_launched = True  # without which Gradio would not check the files of a page that is mounted
    page.queue(default_concurrency_limit=None, api_open=False)  # the studio has a queue of its own
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(middleware=guards, docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        allowed_paths=[],
        max_file_size=studio.limits.max_megabytes * 2**20,
        theme=gradio.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        pwa=False,
    )
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class NoFetching:
    """Refuses the one request by which Gradio fetches from other hosts what a browser names."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        path = scope.get("path", "").replace("\\", "/").lower()
        _, found, name = path.partition("file=")
        if scope["type"] == "http" and found and ":" in name.split("/")[0]:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this server fetches nothing from others"})
            return
        await self._app(scope, receive, send)


class Page(gradio.Blocks):
    """Takes for an upload what was uploaded: no other file that a browser names, and no address, from which Gradio would fetch."""

    uploads: Path

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> list[Any]:
        """What functions are called with. Raises `gradio.Error` for a file that is no upload."""
        if not all(_within(path, self.uploads) for path in _paths(inputs)):
            raise gradio.Error("a file that was not uploaded is not read", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *rest, **options)


def _paths(sent: Any) -> Iterator[str]:
    """All that a browser has sent as a file's path."""
    if isinstance(sent, dict) and "path" in sent:
        yield str(sent["path"])
    for each in sent.values() if isinstance(sent, dict) else sent if isinstance(sent, list) else ():
        yield from _paths(each)


def _within(path: str, folder: Path) -> bool:
    """Whether that is the absolute path of something in a folder. An address is none, though `https://host/../..` would lead anywhere as a path."""
    return Path(path).is_absolute() and "\0" not in path and Path(path).resolve().is_relative_to(folder.resolve())


def build(studio: Studio, title: str, uploads: Path) -> Any:
    """The page, not yet running; what browsers upload lies in `uploads`."""
    with Page(title=title, analytics_enabled=False, fill_width=True, delete_cache=(HOUR, 4 * HOUR)) as page:
        page.uploads = uploads
        gradio.Markdown(f"## {title}\n{studio.model.stages[-1].describe()}")
        videos = gradio.State([])
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=5):
                asked, shown = _questions(studio)
                with gradio.Row():
                    go = gradio.Button("Generate", variant="primary", scale=3, elem_id="go")
                    stop = gradio.Button("Stop", variant="stop", scale=1, elem_id="stop")
                settings = _settings(studio)
            with gradio.Column(scale=6):
                answer = Answer(
                    status=gradio.HTML(show.status("Nothing made yet"), elem_id="status"),
                    stage=gradio.HTML(show.hint("What you generate appears here."), elem_id="stage"),
                    video=gradio.Video(
                        visible=False, autoplay=True, loop=True, show_label=False, elem_id="result", interactive=False
                    ),
                    facts=gradio.HTML(visible=False, elem_id="facts"),
                    download=gradio.DownloadButton("Download", visible=False, elem_id="download"),
                )
        gradio.Markdown(
            "#### Made so far\nWhat you have made appears here; choose a video to see it again, with how it was made."
        )
        gallery = gradio.Gallery(
            show_label=False,
            columns=6,
            fit_columns=False,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            visible=False,
            elem_id="gallery",
        )
        fields = asked | settings
        events = Events(studio, tuple(fields), answer, videos, gallery)
        made = {*answer, videos, gallery}
        go.click(events.make, [videos, *fields.values()], made, api_name="make", show_progress="hidden")
        stop.click(events.stop, None, answer.status, queue=False, api_name="stop")
        gallery.select(events.choose, videos, set(answer), queue=False, api_visibility="private")
        task = fields["task"]
        shown = fields | shown
        visible = [fields["prompt"], *(shown[name] for name in TASK_FIELDS)]
        task.change(events.choose_task, task, visible, queue=False, api_visibility="private")
        placed = [fields["keyframes"], fields["num_frames"]]
        placed[0].change(spread, placed, fields[FRAMES], queue=False, api_visibility="private")
        page.unload(events.leave)
    return page


class Answer(NamedTuple):
    """Where it is shown what was made: Gradio's components."""

    status: Any
    stage: Any
    video: Any
    facts: Any
    download: Any


def _questions(studio: Studio) -> tuple[dict[str, Any], dict[str, Any]]:
    """What every request says, and the files and numbers of tasks, each shown where its task is chosen; by name. And what is shown or hidden in place
    of those that something goes with."""
    classes = studio.model.stages[0].class_names
    fields = {
        "task": gradio.Dropdown(
            [(f"{name}: {each.line}", name) for name, each in TASKS.items()],
            value="generate",
            label="Task",
            visible=len(TASKS) > 1,
            elem_id="task",
        ),
        "prompt": gradio.Dropdown(list(classes), label="Class", elem_id="prompt")
        if classes
        else gradio.Textbox(**PROMPTS["prompt"], lines=2, max_lines=6, autofocus=True, elem_id="prompt"),
        "negative_prompt": gradio.Textbox(label="Negative prompt", placeholder="what to steer away from", max_lines=3),
    }
    shown = {}
    for name, kind in INPUTS.items():
        label, types = name.replace("_", " ").capitalize(), list(FILES[kind])
        if kind == "storyboard":
            with gradio.Group(visible=False) as shown[name]:
                fields[name] = _storyboard(studio, name, types)
        elif kind == "pictures":
            with gradio.Group(visible=False) as shown[name]:
                files = {"file_count": "multiple", "allow_reordering": True}
                fields[name] = gradio.File(label=label, file_types=types, height=150, elem_id=name, **files)
                fields[FRAMES] = gradio.Textbox(
                    label="Their frames, in the order of the files", placeholder="0, 8, 16", max_lines=1, elem_id=FRAMES
                )
        else:
            fields[name] = gradio.File(label=label, file_types=types, visible=False, height=150, elem_id=name)
    fields |= _options(rare=False)
    return fields, shown


def _options(rare: bool) -> dict[str, Any]:
    return {name: _field(name, option) for name, option in OPTIONS.items() if option.rare == rare}


def _field(name: str, option: Option) -> Any:
    common: dict[str, Any] = {"value": option.default, "label": option.help, "visible": False, "elem_id": name}
    if isinstance(option.default, bool):
        return gradio.Checkbox(**common)
    if option.choices:
        return gradio.Radio(list(option.choices), **common)
    step = 1 if isinstance(option.low, int) else 0.05
    return gradio.Number(minimum=option.low, maximum=option.high, step=step, **common)


def _settings(studio: Studio) -> dict[str, Any]:
    pipeline, size = studio.model.stages[0], studio.model.stages[-1].video_size
    assert size is not None  # it generates
    with gradio.Row():
        seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed", scale=3)
        another = gradio.Button("Another seed", size="md", scale=1, elem_id="another")
    another.click(None, None, seed, js=f"() => Math.floor(Math.random() * {2**32})", api_visibility="private")
    fields = {"seed": seed}
    with gradio.Accordion("Settings", open=False):
        most = min(studio.limits.max_steps, 1000)
        steps = min(pipeline.sampler.steps, most)
        fields["steps"] = gradio.Slider(1, most, steps, step=1, label="Steps", elem_id="steps")
        fields["guidance"] = gradio.Slider(0, 20, pipeline.sampler.guidance, step=0.1, label="Guidance (1: none)")
        with gradio.Row():
            for name, value in zip(("num_frames", "height", "width"), size):
                label = name.removeprefix("num_").capitalize()
                fields[name] = gradio.Number(value, label=label, precision=0, minimum=1, min_width=90, elem_id=name)
            fields["fps"] = gradio.Number(studio.model.fps, label="Frames/s", minimum=1, maximum=1000, min_width=90)
        fields |= _options(rare=True)
    return fields


def _storyboard(studio: Studio, name: str, types: list[str]) -> Any:
    """A field for the text of a storyboard, which a file may fill."""
    field = gradio.Textbox(
        label="Storyboard, as JSON or YAML", placeholder=EXAMPLE, lines=8, max_lines=20, elem_id=name
    )
    upload = gradio.UploadButton("Take one from a file", file_types=types, size="sm", elem_id="from_file")

    def text_of(file: str) -> str:
        path, most = Path(file), studio.limits.max_storyboard
        if path.stat().st_size > 4 * most:  # bytes of a character
            raise gradio.Error(f"a storyboard has at most {most} characters here", print_exception=False)
        return path.read_text(encoding="utf-8", errors="replace")

    upload.upload(text_of, upload, field, queue=False, api_visibility="private")
    return field


def spread(files: list[str] | None, num_frames: float | None) -> str:
    """Frames for pictures, evenly over a video."""
    count, last = len(files or ()), max(0, int(num_frames or 1) - 1)
    return ", ".join(str(round(number * last / max(1, count - 1))) for number in range(count))


class Events:
    """What happens when something is pressed. Methods are what Gradio calls."""

    def __init__(self, studio: Studio, names: tuple[str, ...], answer: Answer, videos: Any, gallery: Any):
        self._studio, self._names = studio, names
        self._answer, self._videos, self._gallery = answer, videos, gallery

    def make(self, request: gradio.Request, videos: list[Video], *values: Any) -> Iterator[dict[Any, Any]]:
        """Makes a video; yields what changes on the page meanwhile."""
        answer = self._answer
        told = dict(zip(self._names, values))
        try:
            asked = self._studio.asked(told.pop("task"), told)
            yield {
                answer.status: show.status("Begun; a size that was not asked for before is compiled first"),
                **self._nothing("…"),
            }
            for news in self._studio.make(_owner(request), asked):
                if not isinstance(news, Video):
                    yield self._under_way(news)
                    continue
                videos = [news, *videos][:SHOWN]
                pictures = [(str(each.moving), show.caption(each.record)) for each in videos]
                gallery = {self._gallery: gradio.update(value=pictures, visible=True)}
                yield {**self._shown(news), **gallery, self._videos: videos}
        except Stopped:
            yield {answer.status: show.status("Stopped"), **self._nothing("Stopped.")}
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "walt":
                raise
            yield {answer.status: show.status("Not made"), **self._nothing(str(error))}
            raise gradio.Error(show.escaped(error), title="Not possible", print_exception=False) from error

    def stop(self, request: gradio.Request) -> str:
        """Stops what this visitor has asked for."""
        return show.status("Stopping…" if self._studio.stop(_owner(request)) else "Nothing to stop")

    def leave(self, request: gradio.Request) -> None:
        """The visitor has closed the page."""
        self._studio.stop(_owner(request))

    def choose(self, videos: list[Video], event: gradio.SelectData) -> dict[Any, Any]:
        """Shows a video of the gallery."""
        return self._shown(videos[event.index])

    def choose_task(self, task: str) -> list[Any]:
        """Shows the fields of a task, options as they are unless told otherwise, and hides those of others."""
        chosen, update = TASKS[task] if task in TASKS else TASKS["generate"], gradio.update
        of_task = {*chosen.inputs, *chosen.sizes}
        told = {
            name: update(visible=True, label=each.help, value=each.default) for name, each in chosen.options.items()
        }
        words = PROMPTS[chosen.words]
        if self._studio.model.stages[0].class_names:
            words = {"visible": words["visible"]}
        return [update(**words), *(told.get(name, update(visible=name in of_task)) for name in TASK_FIELDS)]

    def _under_way(self, news: Waiting | Preview) -> dict[Any, Any]:
        """Where a video is that is not made yet."""
        answer = self._answer
        if isinstance(news, Waiting):
            return {answer.status: show.waiting(news)}
        progress, fps = news
        return {answer.status: show.progress(progress), answer.stage: show.moving(progress.preview, fps)}

    def _nothing(self, text: str) -> dict[Any, Any]:
        """A line in place of a video."""
        answer, update = self._answer, gradio.update
        hidden = dict.fromkeys((answer.video, answer.facts, answer.download), update(visible=False))
        return {answer.stage: update(value=show.hint(text), visible=True), **hidden}

    def _shown(self, video: Video) -> dict[Any, Any]:
        answer, update = self._answer, gradio.update
        return {
            answer.status: show.status("Done", 1.0),
            answer.stage: update(visible=False),
            answer.video: update(value=str(video.playing), visible=True),
            answer.facts: update(value=show.facts(video.record, video.playing.name), visible=True),
            answer.download: update(value=str(video.playing), label=f"Download {video.playing.name}", visible=True),
        }


def _owner(request: gradio.Request) -> str:
    """Whose page it is. Gradio draws a random name for every visit."""
    return str(request.session_hash)
