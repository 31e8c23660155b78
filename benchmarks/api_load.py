"""Clients that ask one after the other without a pause, in a process of their own; for `benchmarks/api.py`.

Reads a plan as JSON from standard input: {"port", "key", "clients", "seconds", "first", "requests": [[method, path,
body], ...]}. Each client has one connection and takes the requests in turn; `{n}` in a path or body becomes a number
that is used once, from `first` on. Writes {"seconds", "milliseconds": [...], "answers", "refused": {status: count}} to
standard output; `answers` counts the warm-up's too. Plain sockets, since a library would cost as much as what is
measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from typing import Any

WARM_UP_SECONDS = 0.5


async def client(
    plan: dict[str, Any], numbers: itertools.count[int], begin: float
) -> list[tuple[float, int]]:
    """One client's answers: (milliseconds, status) each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", plan["port"])
    found = []  # of the warm-up with a negative time
    end = begin + plan["seconds"]
    while (sent := time.perf_counter()) < end:
        number = next(numbers)
        method, path, body = plan["requests"][number % len(plan["requests"])]
        content = "" if body is None else json.dumps(body).replace("{n}", str(number))
        head = [
            f"{method} {path.replace('{n}', str(number))} HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {plan['key']}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        ]
        writer.write(("\r\n".join(head) + "\r\n\r\n" + content).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        lines = answer.decode("latin-1").split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
        await reader.readexactly(length)
        now = time.perf_counter()
        found.append((1000 * (now - sent) if now >= begin else -1.0, int(lines[0].split()[1])))
    writer.close()
    return found


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """All clients at once."""
    numbers = itertools.count(plan["first"])
    begin = time.perf_counter() + WARM_UP_SECONDS
    answers = await asyncio.gather(*(client(plan, numbers, begin) for _ in range(plan["clients"])))
    took = time.perf_counter() - begin
    counted = [one for found in answers for one in found if one[0] >= 0]
    return {
        "seconds": took,
        "milliseconds": sorted(one for one, _ in counted),
        "answers": sum(map(len, answers)),
        "refused": Counter(status for _, status in counted if status >= 400),
    }


if __name__ == "__main__":
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
