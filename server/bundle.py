"""The Flower app that a run carries: a page that names installed code, and no code.

Flower ships an app bundle (a zip) from the coordinator to every site with each run. Ours holds one
pyproject.toml; each side runs what is installed there. It is written without compression and with fixed
dates, so that one version of fedtwin makes the same bytes, and the same digest, on every machine.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib.metadata import version

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)
_PYPROJECT = """\
[project]
name = "fedtwin"
version = "{version}"
description = "Names the code that coordinator and sites have installed; holds none."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedtwin"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run = ""
"""


def build_app_bundle() -> bytes:
    """The bundle of this version of fedtwin, as bytes of a zip file."""
    page = _PYPROJECT.format(version=version("fedtwin")).encode()
    manifest = f"pyproject.toml,{hashlib.sha256(page).hexdigest()},{len(page) * 8}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("pyproject.toml", page), (".info/CONTENT", manifest.encode())):
            entry = zipfile.ZipInfo(name, _FIXED_DATE)
            entry.create_system = 3
            archive.writestr(entry, content)
    return buffer.getvalue()


def digest_of_bundle(bundle: bytes) -> str:
    """SHA-256 of a bundle, hexadecimal: how Flower names an app and how a site's policy allows one."""
    return hashlib.sha256(bundle).hexdigest()
