"""Damage for the fuzz tests, and their rounds: few in the ordinary suite, many under `make fuzz`."""

import os
import random
from pathlib import Path


def rounds(default: int) -> int:
    """Return MASTERS_FUZZ_ROUNDS if it is set, else the rounds of the ordinary suite."""
    return int(os.environ.get("MASTERS_FUZZ_ROUNDS", default))


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
