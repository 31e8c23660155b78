"""Whether a site's SuperNode serves its worker: exit status 0, or 1 with a reason. For the container's health check."""

from __future__ import annotations

import os
import socket
import sys
import tomllib
from pathlib import Path

TIMEOUT_SECONDS = 5


def main() -> None:
    """Dial the port that site.toml names."""
    try:
        settings = tomllib.loads((Path(os.environ["FEDTWIN_HOME"]) / "site.toml").read_text())
        address = ("127.0.0.1", int(settings["supernode"]["port"]))
        with socket.create_connection(address, timeout=TIMEOUT_SECONDS):
            pass
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"the SuperNode does not answer: {error}")


if __name__ == "__main__":
    main()
