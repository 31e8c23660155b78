"""Ranges of a file: what cannot be read is left out of account, what lies behind the end is 416 in our own form.

References:
    RFC 9110 sections 13.1.5 (If-Range), 14.1.2 and 14.2 (Range).
"""

from __future__ import annotations

import re

from fastapi import Request

from server.api.problems import ProblemError

_ONE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


def keep_range(request: Request, *, size: int, etag: str) -> None:
    """See that only a single, satisfiable range is left in the request, for the file's response to serve.

    Several ranges at once are served as the whole file, which HTTP allows.

    Raises:
        ProblemError: 416, the range lies behind the file's end.
    """
    asked = request.headers.get("range")
    if asked is None:
        return
    condition = request.headers.get("if-range")
    match = _ONE.fullmatch(asked)
    first, last = match.groups() if match else ("", "")
    readable = bool(first or last) and not (first and last and int(first) > int(last))
    if not readable or (condition is not None and condition != etag):
        request.scope["headers"] = [one for one in request.scope["headers"] if one[0] != b"range"]
        return
    if (first and int(first) >= size) or (not first and int(last) == 0):
        raise ProblemError(
            416,
            "range",
            f"the range {asked} lies behind the file's end; it has {size:,} bytes",
            headers={"Content-Range": f"bytes */{size}"},
        )
