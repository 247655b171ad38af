"""The command."""

import sys

import pytest

import walt.serving
from walt import command, serve


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "walt.serving.page", raising=False)
    monkeypatch.delattr(walt.serving, "page", raising=False)  # where it stays once it is imported
    with pytest.raises(command.CommandError, match=r"install it with `pip install walt\[serve\]`"):
        serve.main(["walt serve"])


@pytest.mark.parametrize(
    ("flag", "message"), [("--port=0", "--port must be between"), ("--port=x", "port"), ("--hots=x", "hots")]
)
def test_bad_flags(flag, message):
    with pytest.raises(command.CommandError, match=message):
        serve.main(["walt serve", flag])
