"""All checks in the order in which a person would put things right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from client.checks.result import CheckResult, failed
from client.home import SiteHome
from models.study import Study


def check_site(site: SiteHome, *, study: Study | None = None) -> Iterator[CheckResult]:
    """Run every check; results come one by one, as they are found.

    Args:
        site: whose folder, machine, network and data.
        study: hold the data, and the dry run, against its schema.
    """
    # Imported as they are needed: the first lines come before torch is loaded.
    from client.checks import folder, machine, network

    yield from _guarded("keys", lambda: folder.check_keys(site))
    yield from _guarded("policy", lambda: folder.check_policy(site))
    yield from _guarded("record", lambda: folder.check_record(site))
    yield from _guarded("versions", machine.check_versions)
    yield from _guarded("disk", lambda: machine.check_disk(site.path))
    yield from _guarded("memory", machine.check_memory)
    yield from _guarded("gpu", machine.check_gpu)
    yield from _guarded("connection", lambda: network.check_coordinator(site))
    yield from _guarded("port", lambda: network.check_port(site))
    from client.checks import data, dry_run

    yield from _guarded("data", lambda: data.check_data(site))
    if study is not None:
        asked = study
        yield from _guarded("schema", lambda: data.check_study_data(site, asked))
    yield from _guarded(
        "dry-run", lambda: dry_run.check_dry_run(None if study is None else study.table.measured)
    )


def _guarded(name: str, check: Callable[[], CheckResult | list[CheckResult]]) -> list[CheckResult]:
    """The check's results; one that breaks has failed, and what it broke with may hold a patient's value."""
    try:
        found = check()
    except Exception as error:
        return [
            failed(
                name,
                f"the check itself broke ({type(error).__name__})",
                "report it; no patient is in this line",
            )
        ]
    return found if isinstance(found, list) else [found]
