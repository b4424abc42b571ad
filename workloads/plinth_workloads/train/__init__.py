"""The training loop and what it needs; `python -m plinth_workloads.train run.json` runs it."""
