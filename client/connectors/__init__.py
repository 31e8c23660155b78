"""Where a site's patients come from: one module for each kind of source, all read as a stream of chunks.

Every fault is reported here, at the site, with its row and column; none of it is ever sent.
"""

from client.connectors.errors import DataSourceError, reading_files
from client.connectors.files import fingerprint
from client.connectors.settings import DataSource, kind_of
from client.connectors.source import PatientSource, open_source

__all__ = [
    "DataSource",
    "DataSourceError",
    "PatientSource",
    "fingerprint",
    "kind_of",
    "open_source",
    "reading_files",
]
