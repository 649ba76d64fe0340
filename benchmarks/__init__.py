"""Benchmarks behind docs/performance.md, docs/scaling.md and RESULTS.md."""
