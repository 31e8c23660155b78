"""The one client of the coordinator's API: for the command line, the demo and `server.researcher`.

What can safely be asked again is asked again when a connection drops: looking, deleting, and a request that carries
an `Idempotency-Key`. Every error is a `CoordinatorError`.

References:
    RFC 9110 sections 10.2.3 (Retry-After), 13.1.5 (If-Range) and 14 (ranges). RFC 9457 (problem+json).
"""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from privacy.cli.proxies import is_this_machine
from server.coordinator_error import CoordinatorError, error_of

TIMEOUT_SECONDS = 180.0  # registering a study calibrates its noise, which takes a slow machine a while
STREAM_SILENCE_SECONDS = 60.0  # an event stream says something four times as often
DOWNLOAD_SILENCE_SECONDS = 30.0
PATIENCE_SECONDS = 60.0  # a coordinator's processes are started again within that, if they fall
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
COME_BACK = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE})


class StreamError(Exception):
    """An event stream broke off, or was not given.

    Attributes:
        refused: whether the API answers, and gives none.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class ApiClient:
    """Calls under `/v1` with a key. A path is what follows `/v1`, or what a `Location` header says.

    Args:
        url: the API's base, without `/v1`; encrypted, or on this machine.
        key: the API key.
        ca: a file with the one authority to believe; the system's where there is none.
        patience_seconds: so long a coordinator that has answered before is asked again when it falls silent.

    Raises:
        CoordinatorError: the key would travel where anybody could read it, or `ca` is no certificate.
    """

    def __init__(
        self, url: str, key: str, *, ca: Path | None = None, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._url = url.rstrip("/")
        self._patience = patience_seconds
        self._has_answered = False
        parts = urlsplit(self._url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise CoordinatorError(
                f"the address is {url!r}; it must look like https://coordinator.example.org, or http://127.0.0.1:8000"
            )
        if parts.scheme != "https" and not is_this_machine(parts.hostname):
            raise CoordinatorError(
                f"the address {url} is neither encrypted nor on this machine, so that anybody on the way could read "
                "the key; ask the operator for the address that begins with https://"
            )
        self._http = httpx.Client(
            base_url=f"{self._url}/v1",
            headers={"Authorization": f"Bearer {key}"},
            timeout=TIMEOUT_SECONDS,
            verify=_trust(ca) if parts.scheme == "https" else True,
            # A proxy is for other machines; a key for this one must not travel through it.
            trust_env=not is_this_machine(parts.hostname),
        )

    @property
    def url(self) -> str:
        """The API's base."""
        return self._url

    def get(self, path: str, **params: Any) -> Any:
        """GET a resource as JSON."""
        return self._call("GET", path, again=True, params=params).json()

    def content(self, path: str, **params: Any) -> bytes:
        """GET a resource as it is."""
        return self._call("GET", path, again=True, params=params).content

    def pages(self, path: str, **params: Any) -> Iterator[Any]:
        """The items of a list, page after page."""
        cursor: dict[str, str] = {}
        while True:
            page = self.get(path, **params, **cursor)
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        again: bool = False,
    ) -> httpx.Response:
        """POST JSON, or text as it is.

        Args:
            again: it may be asked again where a connection drops: it only looks, or twice is as good as once.
        """
        content = {"content": body.encode()} if isinstance(body, str) else {"json": body}
        again = again or "Idempotency-Key" in (headers or {})
        return self._call("POST", path, again=again, headers=dict(headers or {}), **content)

    def delete(self, path: str) -> httpx.Response:
        """DELETE a resource."""
        return self._call("DELETE", path, again=True)

    def events(self, path: str, *, after: str | None = None) -> Iterator[tuple[str, str, Any]]:
        """Server-sent events as they come: (identifier, name, content); ends where the API ends the stream.

        Args:
            after: the identifier of the last event that came.

        Raises:
            StreamError: see there.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=STREAM_SILENCE_SECONDS)
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise StreamError(str(error_of(response)), refused=response.status_code < 500)
                fields: dict[str, str] = {}
                for line in response.iter_lines():
                    name, _, value = line.partition(": ")
                    if line:
                        fields[name] = value
                        continue
                    if "data" in fields:
                        yield fields["id"], fields["event"], json.loads(fields["data"])
                    fields = {}
        except httpx.HTTPError as error:
            raise StreamError(f"the stream of {path} broke off: {error}") from error

    def download(
        self,
        path: str,
        target: Path,
        *,
        digest: str | None = None,
        told: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Stream a file to `target`; returns its size in bytes.

        Args:
            digest: `sha256:` of the file. With it, what a broken download left in `TARGET.part` is gone on with, a
                connection that drops is taken up again, and the file only appears under its name if it is whole.
            told: hears how many bytes there are, often.

        Raises:
            CoordinatorError: refused, broken off, or not the file of that digest.
        """
        draft = target.with_name(target.name + ".part")
        if digest is None:
            draft.unlink(missing_ok=True)
        pause = _Pause(self._patience)
        while True:
            before = draft.stat().st_size if draft.exists() else 0
            try:
                self._stream(path, draft, digest, told)
                break
            except httpx.HTTPError as error:
                if digest is None:
                    draft.unlink(missing_ok=True)
                if draft.exists() and draft.stat().st_size > before:
                    pause = _Pause(self._patience)
                if digest is None or not pause.wait():
                    raise CoordinatorError(
                        f"the download of {target.name} broke off: {_said(error)}; run it again"
                        + ("" if digest is None else ", and it goes on where it stopped")
                    ) from None
        if digest is not None and (found := digest_of_file(draft)) != digest:
            draft.unlink()
            raise CoordinatorError(
                f"{target.name} arrived with the digest {found}, not {digest}; run it again"
            )
        draft.replace(target)
        return target.stat().st_size

    def _stream(self, path: str, draft: Path, digest: str | None, told: Callable[[int], None]) -> None:
        """Bring what is missing of a file; an httpx.HTTPError leaves what has come."""
        have = draft.stat().st_size if draft.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if digest is not None and have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{digest.removeprefix("sha256:")}"'}
        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=DOWNLOAD_SILENCE_SECONDS)
        with self._http.stream("GET", path.removeprefix("/v1"), headers=headers, timeout=timeout) as response:
            self._has_answered = True
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # it is all there, or too much; the digest will say
            if response.is_error:
                response.read()
                if response.status_code in COME_BACK:
                    raise httpx.RemoteProtocolError(str(error_of(response)))
                raise error_of(response)
            have = have if response.status_code == HTTPStatus.PARTIAL_CONTENT else 0
            with draft.open("ab" if have else "wb") as file:
                for block in response.iter_raw():
                    have += file.write(block)
                    told(have)

    def _call(self, method: str, path: str, *, again: bool, **options: Any) -> httpx.Response:
        pause = _Pause(self._patience)
        while True:
            try:
                response = self._http.request(method, path.removeprefix("/v1"), **options)
            except httpx.HTTPError as error:
                # Whom nobody has reached yet has the wrong address more often than bad luck.
                self._has_answered |= not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if again and self._has_answered and pause.wait():
                    continue
                raise self._silence(error) from None
            self._has_answered = True
            if not response.is_error:
                return response
            problem = error_of(response)
            if not (again and problem.status in COME_BACK and pause.wait(problem.retry_after_seconds)):
                raise problem

    def _silence(self, error: httpx.HTTPError) -> CoordinatorError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return CoordinatorError(
                f"the certificate at {self._url} is not believed ({error}); ask the operator for the coordinator's "
                "ca.crt and give it with --ca or FEDTWIN_CA"
            )
        return CoordinatorError(
            f"nobody answers at {self._url} ({_said(error)}); is `fedtwin server up` running, and the address right?"
        )


class _Pause:
    """Longer and longer pauses, until the patience ends."""

    def __init__(self, patience_seconds: float) -> None:
        self._until = time.monotonic() + patience_seconds
        self._next = FIRST_PAUSE_SECONDS

    def wait(self, seconds: float | None = None) -> bool:
        """Wait, if there is patience for it; False if not."""
        wanted = self._next if seconds is None else seconds
        if time.monotonic() + wanted > self._until:
            return False
        time.sleep(wanted)
        self._next = min(2 * self._next, LONGEST_PAUSE_SECONDS)
        return True


def digest_of_file(path: Path) -> str:
    """`sha256:` and the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _said(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def _trust(ca: Path | None) -> ssl.SSLContext:
    if ca is None:
        return ssl.create_default_context()
    try:
        # Not create_default_context: it may add the system's authorities.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=ca)
    except OSError as error:  # ssl.SSLError too
        raise CoordinatorError(
            f"--ca {ca} holds no certificate in PEM form ({error}); it is the ca.crt that the operator gives out"
        ) from None
    return context
