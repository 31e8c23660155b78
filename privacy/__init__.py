"""What is promised: budgets, events, accounting, DP-SGD, noise, ledger structures, verification. Pure."""
