"""Preflight: what must be right before a site takes part, one line per check, with what to do where it is not.

Nothing is sent but the opening of a connection to the coordinator, nothing is debited, and no result holds a
number or a value of patients, but for `private`, which is for the site's own screen.
"""

from client.checks.preflight import check_site
from client.checks.result import CheckResult

__all__ = ["CheckResult", "check_site"]
