"""Studies behind RESULTS.md and docs/; run them as `python -m studies.NAME`."""
