"""A small client of the coordinator's API, for the command line and the demo; every error is a sentence."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import typer

from privacy.cli.problem import say_problem
from privacy.cli.proxies import is_this_machine

Url = Annotated[
    str,
    typer.Option(
        envvar="FEDTWIN_URL",
        help="The coordinator's API, for example https://coordinator.example.org or http://127.0.0.1:8000.",
    ),
]
Key = Annotated[
    str, typer.Option(envvar="FEDTWIN_KEY", help="Your API key; better in FEDTWIN_KEY than typed.")
]
Ca = Annotated[
    Path | None,
    typer.Option(
        envvar="FEDTWIN_CA",
        help="PEM file of the coordinator's own authority, for https; the system's authorities by default.",
    ),
]

TIMEOUT_SECONDS = 180.0  # registering a study calibrates its noise, which takes a slow machine a while


STREAM_SILENCE_SECONDS = 60.0  # an event stream says something four times as often


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
        problem: makes what is raised of a sentence; by default it is said, and the command ends.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        ca: Path | None = None,
        problem: Callable[[str], Exception] = say_problem,
    ) -> None:
        self._url = url.rstrip("/")
        self._problem = problem
        parts = urlsplit(self._url)
        if parts.scheme != "https" and not is_this_machine(parts.hostname):
            raise problem(
                f"--url {url} is neither encrypted nor on this machine, so that anybody on the way could read the key; "
                "ask the operator for the address that begins with https://"
            )
        self._http = httpx.Client(
            base_url=f"{self._url}/v1",
            headers={"Authorization": f"Bearer {key}"},
            timeout=TIMEOUT_SECONDS,
            verify=self._trust(ca) if parts.scheme == "https" else True,
            # A proxy is for other machines; a key for this one must not travel through it.
            trust_env=not is_this_machine(parts.hostname),
        )

    def get(self, path: str, **params: Any) -> Any:
        """GET a resource as JSON."""
        return self._call("GET", path, params=params).json()

    def post(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """POST JSON, or text as it is."""
        if isinstance(body, str):
            return self._call("POST", path, content=body.encode(), headers=dict(headers or {}))
        return self._call("POST", path, json=body, headers=dict(headers or {}))

    def delete(self, path: str) -> None:
        """DELETE a resource."""
        self._call("DELETE", path)

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
                    raise StreamError(_sentence(response), refused=response.status_code < 500)
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

    def download(self, path: str, target: Path) -> int:
        """Stream a file to `target`; returns its size in bytes. A broken download leaves no file."""
        draft = target.with_name(target.name + ".part")
        size = 0
        try:
            with self._http.stream("GET", path.removeprefix("/v1")) as response, draft.open("wb") as file:
                if response.is_error:
                    response.read()
                    raise self._problem(_sentence(response))
                for block in response.iter_bytes():
                    size += file.write(block)
            draft.replace(target)
        except httpx.HTTPError as error:
            raise self._problem(f"the download of {path} broke off: {error}; run the command again") from None
        finally:
            draft.unlink(missing_ok=True)
        return size

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path.removeprefix("/v1"), **options)
        except httpx.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise self._problem(
                    f"the certificate at {self._url} is not believed ({error}); ask the operator for the coordinator's "
                    "ca.crt and give it with --ca or FEDTWIN_CA"
                ) from None
            raise self._problem(
                f"nobody answers at {self._url} ({error}); is `fedtwin server up` running, and --url right?"
            ) from None
        if response.is_error:
            raise self._problem(_sentence(response))
        return response

    def _trust(self, ca: Path | None) -> ssl.SSLContext:
        if ca is None:
            return ssl.create_default_context()
        try:
            # Not create_default_context: it may add the system's authorities.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cafile=ca)
        except OSError as error:  # ssl.SSLError too
            raise self._problem(
                f"--ca {ca} holds no certificate in PEM form ({error}); it is the ca.crt that the operator gives out"
            ) from None
        return context


def _sentence(response: httpx.Response) -> str:
    """A problem+json (RFC 9457) as words."""
    try:
        problem = response.json()
    except ValueError:
        return f"the coordinator answered {response.status_code}: {response.text[:200]}"
    text = str(problem.get("detail") or problem.get("title") or response.status_code)
    for fault in problem.get("errors", []):
        text += f"\n  {fault.get('field', '')}: {fault.get('detail', fault)}"
    return text
