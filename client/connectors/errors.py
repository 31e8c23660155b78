"""What a source of patients raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DataSourceError(Exception):
    """The site's data cannot be read as what it is declared to be. Local: never sent."""


@contextmanager
def reading_files() -> Iterator[None]:
    """Say in words what the operating system has against reading the site's data.

    Raises:
        DataSourceError: in place of an OSError.
    """
    try:
        yield
    except PermissionError as error:
        raise DataSourceError(
            f"{error.filename or 'the data'} may not be read by the user that runs this; give that user the right to "
            "read it, and no other right"
        ) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise DataSourceError(
            f"the data cannot be read ({place}{error.strerror or type(error).__name__})"
        ) from None
