# SPDX-License-Identifier: Apache-2.0
"""A store of templates on this machine, laid out as TemplateFlow's, for its real client."""

import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread

import pytest

SURFACE = b'<?xml version="1.0" encoding="UTF-8"?>\n<GIFTI Version="1.0"></GIFTI>\n' + 100_000 * b" "
VOLUME = b"\x1f\x8b" + bytes(range(256)) * 100


def archive() -> list[str]:
    """Every file that TemplateFlow can fetch, as template folder / name, from the list its package brings."""
    skeletons = [p for p in files("templateflow").joinpath("conf").iterdir() if p.name.endswith(".zip")]
    if not skeletons:
        pytest.skip("this templateflow brings no skeleton")
    with zipfile.ZipFile(str(skeletons[0])) as skeleton:
        return skeleton.namelist()


def stored(name: str) -> bytes:
    """What the store has under a name: something that only this file holds."""
    return (VOLUME if name.endswith(".gz") else SURFACE) + name.rpartition("/")[2].encode()


class Store(ThreadingHTTPServer):
    """Serves the archive.

    Attributes
    ----------
    absent, broken, portal : set of str
        File names that are answered with 404, break off half-way, or are answered with a login page.
    asked : list of str
        Paths that were asked for.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names = {name for name in archive() if not name.endswith("/")}
        self.absent, self.broken, self.portal, self.asked = set(), set(), set(), []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.lstrip("/")
        self.server.asked.append(path)
        name = path.rpartition("/")[2]
        if path not in self.server.names or name in self.server.absent:
            self.send_error(404)
            return
        content = b"<html>Please log in</html>" if name in self.server.portal else stored(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.broken else content)
        self.close_connection = True

    def log_message(self, *words):
        pass


@contextmanager
def serving():
    """A store that answers until the end of the block."""
    with Store() as store:
        thread = Thread(target=store.serve_forever, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()
