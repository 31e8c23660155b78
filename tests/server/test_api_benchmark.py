"""The clients of `benchmarks/api.py` measure what they say, against a server whose pace is known."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

LOAD = Path(__file__).parents[2] / "benchmarks" / "api_load.py"
PACE_SECONDS = 0.02


class Paced(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, bytes, str]]

    def do_GET(self) -> None:
        time.sleep(PACE_SECONDS)
        self.seen.append((self.path, b"", self.headers["authorization"]))
        self.answer(200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, body, self.headers["authorization"]))
        self.answer(429)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"{}\n")

    def log_message(self, *_: object) -> None:
        pass


def test_the_clients_tell_how_long_each_answer_took_and_which_were_refused() -> None:
    handler = type("Handler", (Paced,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    plan = {
        "port": server.server_port,
        "key": "ftw_x",
        "clients": 3,
        "seconds": 1,
        "first": 1000,
        "requests": [["GET", "/a?seed={n}", None], ["POST", "/b", {"name": "{n}"}]],
    }
    told = subprocess.run(
        [sys.executable, str(LOAD)], input=json.dumps(plan), capture_output=True, text=True, check=True
    )
    server.shutdown()
    server.server_close()
    found = json.loads(told.stdout)
    count = len(found["milliseconds"])
    assert 0 < count <= len(handler.seen)
    assert found["milliseconds"] == sorted(found["milliseconds"])
    assert abs(found["refused"]["429"] - count / 2) <= 3
    slow = [one for one in found["milliseconds"] if one >= 1000 * PACE_SECONDS]
    assert len(slow) >= count - found["refused"]["429"]
    assert count <= plan["clients"] * 2 * (
        found["seconds"] / PACE_SECONDS + 1
    )  # nobody asks before the answer
    assert {key for _, _, key in handler.seen} == {"Bearer ftw_x"}
    numbers = [path for path, _, _ in handler.seen if path.startswith("/a")]
    numbers += [body.decode() for path, body, _ in handler.seen if path == "/b"]
    assert len(set(numbers)) == len(numbers)
