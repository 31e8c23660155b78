"""The four top-level names are generic: make sure that each resolves inside this distribution."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

ROOMS = ("server", "client", "models", "privacy")


class ForeignRoomError(ImportError):
    """A top-level name of fedtwin resolves to somebody else's package."""


def check_rooms() -> None:
    """Check that `server`, `client`, `models` and `privacy` are ours.

    Other packages install such names too (opacus 1.6 brings `examples` and `benchmarks`), and Flower
    loads apps by them, so a foreign one would run foreign code next to patients.

    Raises:
        ForeignRoomError: one of the four resolves outside the folder that this file lies in.
    """
    home = Path(__file__).resolve().parents[2]
    for room in ROOMS:
        spec = find_spec(room)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin.parent.parent != home:
            raise ForeignRoomError(
                f"the package {room!r} resolves to {origin}, not into fedtwin's {home}; "
                "another distribution or a folder on PYTHONPATH shadows it: remove it and start again"
            )
