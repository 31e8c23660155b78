"""The coordinator's command line: `server` runs on its machine, `study` and `cohort` speak to its API."""
