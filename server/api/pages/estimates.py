"""What conditions will give, before anything is asked for: their share of the release, and a look at some patients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool

from models.study import Study
from server.api.pages.distributions import load_generator
from server.condition_text import condition_text
from server.errors import InvalidError
from server.previews import Preview, Previewer, PreviewUnavailableError
from server.releases import Release
from server.store import Store

FEW_COMPONENTS = 5.0
MAX_ADDRESS = 8_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cohort under the conditions would be.

    Attributes:
        preview: some patients, and how the conditions meet the release; None where they do not.
        is_whole: whether nothing was asked for.
        num_components: of the generator.
        header: the preview's columns, for people.
        pictures: where pictures of these patients are; empty where the release has none.
        too_rare: why too few patients satisfy the conditions, in words; empty where enough do.
        fault: what cannot be read in the conditions, or why there is no preview now; empty where there is one.
    """

    preview: Preview | None = None
    is_whole: bool = False
    num_components: int = 0
    header: Sequence[str] = ()
    pictures: str = ""
    too_rare: str = ""
    fault: str = ""

    @property
    def is_thin(self) -> bool:
        """Whether few of the generator's components carry the group that was asked for."""
        if self.preview is None or self.is_whole:  # wider than the whole nothing can be
            return False
        return self.preview.effective_components < FEW_COMPONENTS


async def estimate(
    store: Store,
    previewer: Previewer,
    release: Release,
    study: Study,
    conditions: Sequence[Any],
    *,
    columns: Sequence[str],
    seed: int,
) -> Estimate:
    """Weigh conditions against a release and draw a preview; costs no privacy, and holds no thread while it waits.

    Raises:
        ConflictError: the release is not published.
    """

    def ask() -> Future[Preview]:
        return previewer.ask(store, release, conditions=conditions, columns=columns, seed=seed)

    try:
        waiting = await run_in_threadpool(ask)
    except (InvalidError, PreviewUnavailableError) as error:
        return Estimate(fault=str(error))
    try:
        preview = await asyncio.wrap_future(waiting)
    except InvalidError as error:  # what can be read and is refused is too rare
        return Estimate(too_rare=str(error))
    except PreviewUnavailableError as error:
        return Estimate(fault=str(error))
    generator = await run_in_threadpool(load_generator, store, release, study)
    titles = {column.name: column.title or column.name for column in study.table.columns}
    return Estimate(
        preview=preview,
        is_whole=not conditions,
        num_components=generator.table.num_components,
        header=[titles[name] for name in preview.columns],
        pictures="" if study.image is None else _pictures(release, conditions, seed),
    )


def _pictures(release: Release, conditions: Sequence[Any], seed: int) -> str:
    asked = [("where", condition_text(one)) for one in conditions]
    address = f"/releases/{release.digest}/pictures.png?{urlencode([*asked, ('seed', seed)])}"
    return address if len(address) <= MAX_ADDRESS else ""
