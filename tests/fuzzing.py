"""Damage for the fuzz tests; their rounds, few in the suite and many under `make fuzz`; their count."""

import os
import random
from pathlib import Path


def rounds(default: int) -> int:
    """Return MASTERS_FUZZ_ROUNDS if it is set, else the rounds of the ordinary suite."""
    return int(os.environ.get("MASTERS_FUZZ_ROUNDS", default))


def count(attack: str, named: bool) -> None:
    """Record how an attack that the test passed ended: named in one line, or without any effect.

    `make fuzz` turns the file MASTERS_FUZZ_LOG into a table of the book.
    """
    if log := os.environ.get("MASTERS_FUZZ_LOG"):
        with open(log, "a") as file:  # one short write, so processes do not mix their lines
            file.write(f"{attack}\t{'named' if named else 'harmless'}\n")


def damage(path: Path, others: list[Path], rng: random.Random) -> str:
    """Damage a file in one of seven ways, one of which is the content of another file; return which."""
    data = bytearray(path.read_bytes())
    how = rng.choice(["flip", "flips", "cut", "empty", "garbage", "double", "swap"])
    if how.startswith("flip") and data:
        for _ in range(1 if how == "flip" else 20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    written = {
        "cut": data[: rng.randrange(len(data) or 1)],
        "empty": b"",
        "garbage": rng.randbytes(rng.randrange(1, 2000)),
        "double": data + data,
        "swap": rng.choice(others).read_bytes(),
    }
    path.write_bytes(written.get(how, data))
    return how
