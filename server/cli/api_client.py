"""A small client of the coordinator's API, for the command line; every error is a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import typer

from privacy.cli.problem import say_problem
from privacy.cli.proxies import is_this_machine

Url = Annotated[
    str, typer.Option(envvar="FEDTWIN_URL", help="The coordinator's API, for example http://127.0.0.1:8000.")
]
Key = Annotated[
    str, typer.Option(envvar="FEDTWIN_KEY", help="Your API key; better in FEDTWIN_KEY than typed.")
]


TIMEOUT_SECONDS = 180.0  # registering a study calibrates its noise, which takes a slow machine a while


class ApiClient:
    """Calls under `/v1` with a key.

    Args:
        url: the API's base, without `/v1`.
        key: the API key.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=f"{self._url}/v1",
            headers={"Authorization": f"Bearer {key}"},
            timeout=TIMEOUT_SECONDS,
            # A proxy is for other machines; a key for this one must not travel through it.
            trust_env=not is_this_machine(urlsplit(self._url).hostname),
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

    def download(self, path: str, target: Path) -> int:
        """Stream a file to `target`; returns its size in bytes. A broken download leaves no file."""
        draft = target.with_name(target.name + ".part")
        size = 0
        try:
            with self._http.stream("GET", path) as response, draft.open("wb") as file:
                if response.is_error:
                    response.read()
                    raise say_problem(_sentence(response))
                for block in response.iter_bytes():
                    size += file.write(block)
            draft.replace(target)
        except httpx.HTTPError as error:
            raise say_problem(f"the download of {path} broke off: {error}; run the command again") from None
        finally:
            draft.unlink(missing_ok=True)
        return size

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise say_problem(
                f"nobody answers at {self._url} ({error}); is `fedtwin server up` running, and --url right?"
            ) from None
        if response.is_error:
            raise say_problem(_sentence(response))
        return response


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
