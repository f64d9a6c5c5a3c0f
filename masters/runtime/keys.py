"""Keys of stored results: one hash over named fields, and one version per kind of result.

Raise the version of a kind whenever the values stored under it could change. Older files are then ignored and
computed again.
"""

import hashlib
import json
from typing import Any

VERSIONS = {
    "own_data": 4,  # checked rows
    "questions": 3,
    "rung": 2,  # a trained model of the ladder
    "norms": 1,  # input norms for the Wanda criterion
    "responses": 3,
    "verdict": 1,  # of a language model
    "logprobs": 2,
    "run": 2,
    "masked": 2,  # accuracy of a masked teacher
    "imitation": 1,  # hidden states and runs of the imitation study
}


def key_of(kind: str, **fields: Any) -> str:
    """Return the key of a stored result, 16 hexadecimal digits.

    Args:
        kind: one of ``VERSIONS``.
        fields: all that determines the result, as JSON values. None is left out, so that a new optional field
            does not change old keys.

    Raises:
        KeyError: no such kind.
    """
    named = {name: value for name, value in fields.items() if value is not None}
    return hash_of({"kind": kind, "version": VERSIONS[kind], **named})


def hash_of(value: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
