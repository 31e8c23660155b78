"""The API application: `uvicorn --factory server.api.app:create_app`, with FEDTWIN_HOME set."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from server.api import (
    cohorts,
    health,
    invitations,
    keys,
    ledger,
    oauth,
    previews,
    problems,
    releases,
    run_events,
    runs,
    site_word,
    sites,
    studies,
)
from server.api.kept_answers import KeptAnswers
from server.api.limits import RequestLimits
from server.api.metering import RequestMeter
from server.api.openapi import describe
from server.api.pages.mount import PagesBesideApi, create_pages
from server.api.slow_work import SlowWork
from server.api.starter import FlowerStarter, RunStarter
from server.federation_facts import FederationFacts
from server.home import CoordinatorHome
from server.previews import Previewer
from server.store import Store

HANDLER_THREADS = 4
"""Handlers that run at once. One interpreter runs one at a time; with forty they mostly wait for each other's turn."""

DESCRIPTION = """
Synthetic patients under differential privacy, learnt at hospitals that keep their data.

Send your API key as `Authorization: Bearer ftw_...`. Roles: an **operator** defines studies, enrols sites, runs
and publishes; a **researcher** browses releases and asks for cohorts; an **auditor** reads studies, spends,
releases and the ledger. Long work answers 202 with a `Location` to follow. Lists that grow take `limit` and `cursor`.
Every error is `application/problem+json` (RFC 9457).
"""
FEATURES = (
    studies,
    sites,
    site_word,
    invitations,
    runs,
    run_events,
    releases,
    previews,
    cohorts,
    ledger,
    keys,
    oauth,
    health,
)
TAGS = [
    {
        "name": "studies",
        "description": "Schema, algorithm settings and budgets; registered once, never changed.",
    },
    {"name": "sites", "description": "Hospitals that take part."},
    {
        "name": "joining",
        "description": "Invitations, the sites that answered them, and the operator's decision.",
    },
    {"name": "runs", "description": "Training executions: progress, spends, stop and resume."},
    {"name": "releases", "description": "Published generators: data dictionary, budgets, limits of use."},
    {"name": "cohorts", "description": "Synthetic patients from a release, with a certificate."},
    {"name": "ledger", "description": "The append-only log that an auditor verifies offline."},
    {"name": "keys", "description": "API keys: scopes, quotas, rotation, revocation, short-lived tokens."},
    {"name": "health", "description": "Whether the coordinator works."},
]


def create_app(
    home: CoordinatorHome | None = None,
    *,
    store: Store | None = None,
    starter: RunStarter | None = None,
    facts: FederationFacts | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        home: the coordinator's; that in FEDTWIN_HOME where absent.
        store: its opened state, where the caller has it already; needs `starter`.
        starter: how runs are started; by Flower where absent.
        facts: what sites must know to join; the home's where absent.
    """
    alone = home is None and store is None  # in a process of its own
    stopped = threading.Event()
    watch: threading.Thread | None = None
    if store is None:
        home = home or CoordinatorHome.open(Path(os.environ["FEDTWIN_HOME"]))
        store = Store.open(home)
    if starter is None:
        if home is None:
            raise ValueError("give a starter with a store, or a home")
        flower = FlowerStarter(home, store)
        watch = threading.Thread(target=flower.watch, args=(stopped,), name="federation-watch", daemon=True)
        starter = flower

    previewer = Previewer(seconds=store.allowances.preview_seconds)
    slow_work = SlowWork()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = HANDLER_THREADS
        if alone:
            # What the start has made stays: looking it through again for garbage would stop all answers for 0.2 s.
            gc.collect()
            gc.freeze()
        if watch is not None:
            watch.start()
        yield
        stopped.set()
        previewer.close()
        slow_work.close()
        if watch is not None:
            watch.join(timeout=5)
        store.close()

    app = FastAPI(
        title="fedtwin",
        version=version("fedtwin"),
        summary="Federated digital twins",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.store = store
    app.state.starter = starter
    app.state.facts = facts or (None if home is None else FederationFacts.of(home))
    app.state.wrong_answers = invitations.WrongAnswers()
    app.state.previewer = previewer
    app.state.slow_work = slow_work
    app.state.wrong_secrets = invitations.WrongAnswers()
    app.state.kept_answers = KeptAnswers()
    app.state.meter = RequestMeter(store.allowances.requests_per_minute)
    app.state.streams = run_events.StreamSlots()
    routers = [feature.router for feature in FEATURES]
    problems.install(app, routers)
    app.add_middleware(RequestLimits)
    app.add_middleware(PagesBesideApi, pages=create_pages(app.state))
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: describe(app, routers)  # type: ignore[method-assign]
    app.state.describe = app.openapi
    return app
