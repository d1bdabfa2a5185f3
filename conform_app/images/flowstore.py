# SPDX-License-Identifier: Apache-2.0
"""TemplateFlow's store: whether it answers, and files fetched from it so that they are complete or not there.

TemplateFlow's own client downloads into the place where a file belongs; what breaks off stays there and
looks complete.  It is therefore given a folder of its own here, which holds the one empty file that it is to
fetch, and the file is moved once it is whole.
"""

from __future__ import annotations

import os
import socket
import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

#: Environment variable that names another address of the store, such as an institute's mirror.
STORE = "CONFORM_TEMPLATE_STORE"


_OWN = "https://templateflow.s3.amazonaws.com"


def address() -> str:
    """Where the store is: the mirror that is set, else TemplateFlow's own."""
    return (os.environ.get(STORE) or _OWN).rstrip("/")


def online() -> bool:
    """Whether the store answers; behind a proxy it is taken to."""
    return _answers(address())


@cache
def _answers(where: str) -> bool:
    try:
        url = urlsplit(where)
        if not url.hostname:
            return False
        if url.scheme in getproxies() and not proxy_bypass(url.hostname):
            return True
        port = url.port or {"http": 80}.get(url.scheme, 443)
        socket.create_connection((url.hostname, port), timeout=4).close()
    except (OSError, ValueError):
        return False
    return True


def prepare(home: Path) -> None:
    """Lay out TemplateFlow's folder, as its client does where there is none.

    Other programs rest on the list of names in it, and the client makes it in an empty folder only.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    from templateflow.conf.cache import CacheConfig, TemplateFlowCache

    TemplateFlowCache(CacheConfig(root=home, use_datalad=False)).ensure()


def fetch(home: Path, template: str, name: str) -> bool:
    """Fetch a file of a template into TemplateFlow's folder; tell whether it is there afterwards."""
    target = home / f"tpl-{template}" / name
    if target.is_symlink():  # a DataLad dataset, whose files DataLad fetches
        return False
    try:
        prepare(home)
        with tempfile.TemporaryDirectory(prefix=".conform-", dir=home) as scratch:
            part = _download(Path(scratch), template, name)
            target.parent.mkdir(exist_ok=True)
            if not _has_content(part):
                return False
            part.replace(target)
    except (OSError, RuntimeError, ValueError, ImportError):
        return False
    return True


def _download(root: Path, template: str, name: str) -> Path:
    """The file in a folder that holds nothing else, fetched by TemplateFlow's client."""
    from templateflow.client import TemplateFlowClient

    part = root / f"tpl-{template}" / name
    part.parent.mkdir()
    part.touch()
    client = TemplateFlowClient(root=root, s3_root=address(), use_datalad=False)
    client.get(template, extension="." + name.partition(".")[2])
    return part


def _has_content(path: Path) -> bool:
    """Whether a download is what its name says: a network's login page comes without any error."""
    with path.open("rb") as file:
        start = file.read(1024)
    return start[:2] == b"\x1f\x8b" if path.name.endswith(".gz") else b"<GIFTI" in start
