"""What a source of patients raises."""


class DataSourceError(Exception):
    """The site's data cannot be read as what it is declared to be. Local: never sent."""
