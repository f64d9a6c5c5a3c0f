"""Benchmarks of the fast paths, for ``make bench``. Not part of the package."""
