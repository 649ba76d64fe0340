"""Studies behind RESULTS.md, each run by `python -m studies.NAME`."""
