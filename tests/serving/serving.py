"""The page while it is served, for tests."""

import contextlib
import threading
import time

from walt.serving import page as pages


@contextlib.contextmanager
def serving(studio, uploads):
    """Its address."""
    with pages.bound("127.0.0.1", 0) as listening:
        server = pages.make_server(studio, "127.0.0.1", "WALT", uploads)
        thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
