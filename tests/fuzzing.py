"""Rounds of the fuzz tests: few in the ordinary suite, many under `make fuzz`."""

import os


def rounds(default: int) -> int:
    """Return MASTERS_FUZZ_ROUNDS if it is set, else the rounds of the ordinary suite."""
    return int(os.environ.get("MASTERS_FUZZ_ROUNDS", default))
