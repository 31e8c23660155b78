"""The coordinator: Flower ServerApp, studies, releases, cohorts, ledger store, API, command line."""
