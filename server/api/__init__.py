"""The REST API under /v1: one module per feature, problem+json for every error."""
