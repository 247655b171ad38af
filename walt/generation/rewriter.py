"""Prompts that something else writes out before the model reads them: rules, a local command, or a language model behind an HTTP address.

    rules:FILE              JSON: {"replace": {"car": "a red sports car"}, "before": "", "after": ", in bright colours"}
    command:PROGRAM ARG …   run without a shell; the prompt on its standard input, the new one on its standard output
    http://…, https://…     POST to ADDRESS/chat/completions as OpenAI's protocol has it; the key, if one is needed, from WALT_REWRITER_KEY

What comes back is data: text, cut to one line, or an error of one sentence.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import re
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from walt.untrusted import field, parse_json, typed

KEY = "WALT_REWRITER_KEY"
INSTRUCTION = (
    "Rewrite the user's text as the description of a short video: what is seen, how it moves, in one or two sentences. Keep every "
    "thing that the text names. Answer with the description alone."
)
MAX_CHARACTERS = 4000  # of a prompt that comes back
MAX_BYTES = 2**20  # of an answer or a file of rules
RETRIED = (408, 429, 500, 502, 503, 504)
LOCAL = ("localhost", "127.0.0.1", "::1")


class RewriterError(ValueError):
    """A prompt cannot be rewritten; the message says why."""


@dataclasses.dataclass(frozen=True)
class Rewriter:
    """A function of a prompt.

    Attributes:
      name: for a video's record: the kind of rewriter and the last part of what it is called, no folder, no arguments and no key.
      rewrite: from a prompt to another; raises `RewriterError`.
    """

    name: str
    rewrite: Callable[[str], str]

    def __call__(self, prompt: str) -> str:
        """The new prompt, on one line."""
        text = " ".join(self.rewrite(prompt).split())
        if not text:
            raise RewriterError(f"the rewriter {self.name} makes nothing of {prompt!r}")
        if len(text) > MAX_CHARACTERS:
            raise RewriterError(
                f"the rewriter {self.name} makes {len(text):,} characters of {prompt!r}, more than {MAX_CHARACTERS:,}"
            )
        return text


def make_rewriter(
    text: str, *, model: str = "default", timeout: float = 30.0, retries: int = 2, pause: float = 1.0
) -> Rewriter:
    """The rewriter that a flag names, see the module.

    Args:
      text: `rules:FILE`, `command:PROGRAM ARG …` or an address.
      model: what the endpoint calls the language model.
      timeout: seconds that a command or a request may take.
      retries: further requests where one fails in a way that may pass, the first after `pause` seconds, each later one after twice that of the last.

    Raises:
      RewriterError: there is no such rewriter, or its rules cannot be read.
    """
    if not timeout > 0:
        raise RewriterError(f"the rewriter's timeout must be positive, got {timeout:g} seconds")
    kind, _, rest = text.partition(":")
    match kind:
        case "rules":
            return Rewriter(f"rules:{Path(rest).name}", read_rules(Path(rest)))
        case "command":
            command = _split(rest)
            return Rewriter(f"command:{Path(command[0]).name}", lambda prompt: _run(command, prompt, timeout))
        case "http" | "https":
            endpoint = Endpoint(text.rstrip("/"), model, timeout, retries, pause)
            return Rewriter(f"{kind}:{endpoint.host}", endpoint)
    raise RewriterError(f"a rewriter is rules:FILE, command:PROGRAM or an address (http://…), got {text!r}")


# ---- rules


def read_rules(path: Path) -> Callable[[str], str]:
    """Rules as a function: whole words that stand in `replace`, in whatever case, become its values, all at once; then `before` and `after`
    are put around."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        rules = typed(parse_json(data), dict, "it")
        if unknown := rules.keys() - {"replace", "before", "after"}:
            raise ValueError(f"{min(unknown)!r} is none of replace, before, after")
        rules = {"replace": {}, "before": "", "after": ""} | rules
        before, after = field(rules, "before", str), field(rules, "after", str)
        replace = {
            key.lower(): typed(value, str, f"replace.{key}") for key, value in field(rules, "replace", dict).items()
        }
        if "" in replace:
            raise ValueError("replace has an empty word")
    except OSError as error:
        raise RewriterError(f"the rules {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RewriterError(f"the rules {path} cannot be used: {error}") from error
    # The longest first, so that "red car" wins over "car".
    words = "|".join(re.escape(word) for word in sorted(replace, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def rewrite(prompt: str) -> str:
        if pattern is not None:
            prompt = pattern.sub(lambda found: replace.get(found[0].lower(), found[0]), prompt)
        return before + prompt + after

    return rewrite


# ---- a command


def _split(text: str) -> list[str]:
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise RewriterError(f"the rewriter's command {text!r} cannot be read: {error}") from error
    if not command:
        raise RewriterError("a rewriter's command is written command:PROGRAM ARGUMENT …, and there is no program")
    return command


def _run(command: list[str], prompt: str, timeout: float) -> str:
    try:
        done = subprocess.run(command, input=prompt.encode(), capture_output=True, timeout=timeout, check=False)
    except OSError as error:
        raise RewriterError(f"the rewriter's command {command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RewriterError(f"the rewriter's command {command[0]} took longer than {timeout:g} seconds") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RewriterError(
            f"the rewriter's command {command[0]} failed with status {done.returncode}{': ' + said[-1][:200] if said else ''}"
        )
    return _text(done.stdout, f"the rewriter's command {command[0]}")


# ---- an address


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another host must not be sent the key."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A language model as OpenAI's chat protocol has it. Arguments are those of `make_rewriter`."""

    address: str
    model: str
    timeout: float
    retries: int
    pause: float

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.address)
            named = parts.hostname and (parts.port or True)
            if not self.address.isascii() or not self.address.isprintable() or " " in self.address:
                raise ValueError("write what is beyond printable ASCII as %XX, and in a host as xn--…")
            (parts.hostname or "").encode("idna")  # as it is looked up
        except ValueError as error:
            raise RewriterError(f"the rewriter's address {self.address!r} cannot be read: {error}") from error
        if not named:
            raise RewriterError(f"the rewriter's address {self.address!r} names no host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise RewriterError(f"a rewriter's address is no more than scheme, host and path; a key belongs in {KEY}")
        if _key() and parts.scheme == "http" and parts.hostname not in LOCAL:
            raise RewriterError(f"{KEY} would travel to {self.host} for everybody to read: use an address with https")

    @property
    def host(self) -> str:
        """Name and port."""
        return urllib.parse.urlsplit(self.address).netloc.rpartition("@")[2]

    def __call__(self, prompt: str) -> str:
        """One request, and others where it fails in a way that may pass."""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._answer(_within(self.timeout, lambda: self._ask(prompt)))
            except urllib.error.HTTPError as error:
                problem = f"answers {error.code} {error.reason}"
                if error.code not in RETRIED:
                    break
            except TimeoutError:
                problem = f"does not answer within {self.timeout:g} seconds"
            except http.client.HTTPException as error:
                problem = f"does not speak HTTP: {type(error).__name__}"
            except OSError as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                problem = f"cannot be reached: {getattr(reason, 'strerror', None) or reason}"
        raise RewriterError(f"the rewriter {self.host} {problem}")

    def _ask(self, prompt: str) -> bytes:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]
        headers = {"Content-Type": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        request = urllib.request.Request(f"{self.address}/chat/completions", body, headers)
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=self.timeout) as answer:
            return answer.read(MAX_BYTES + 1)

    def _answer(self, data: bytes) -> str:
        try:
            text = _text(data, f"the rewriter {self.host}")
            (choice, *_) = field(parse_json(text), "choices", list)
            return field(field(choice, "message", dict), "content", str)
        except RewriterError:
            raise
        except ValueError as error:
            raise RewriterError(
                f"the rewriter {self.host} answers in another form than a chat's: {str(error)[:200]}"
            ) from error


def _key() -> str:
    """The key, empty for none. What a file's last line leaves at its end is no part of it."""
    key = os.environ.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise RewriterError(f"{KEY} holds characters that no key has: it must be one line of printable ASCII")
    return key


def _within(seconds: float, call: Callable[[], bytes]) -> bytes:
    """What a call returns or raises, and `TimeoutError` after that time as a whole: a socket's own begins anew with every byte.

    A call that is late goes on in a thread for which nobody waits.
    """
    done: Future[bytes] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(seconds)


def _text(data: bytes, what: str) -> str:
    if len(data) > MAX_BYTES:
        raise RewriterError(f"{what} answers with more than {MAX_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RewriterError(f"{what} answers with something that is not UTF-8 text") from error
