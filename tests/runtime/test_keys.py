"""Keys depend on the kind, its version and every field that is given."""

import pytest

from masters.runtime import keys
from masters.runtime.keys import hash_of, key_of


def test_a_hash_depends_on_the_value_only() -> None:
    assert hash_of({"b": [1, 2.5, None], "a": "é"}) == hash_of({"a": "é", "b": [1, 2.5, None]})
    values = [1, "1", 1.5, [1], [], {}, None, True, "é", "e", {"a": 1}, {"a": 2}, [1, 2], [2, 1]]
    assert len({hash_of(value) for value in values}) == len(values)
    assert all(len(hash_of(value)) == 16 and int(hash_of(value), 16) >= 0 for value in values)


def test_a_key_depends_on_kind_version_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [key_of("run", seed=0), key_of("run", seed=1), key_of("run", step=0), key_of("rung", seed=0)]
    found.append(key_of("run", seed=0, top_k=8))
    assert len(set(found)) == len(found)
    assert key_of("run", seed=0, top_k=None) == found[0], "an unused option keeps the key"
    monkeypatch.setitem(keys.VERSIONS, "run", keys.VERSIONS["run"] + 1)
    assert key_of("run", seed=0) != found[0]


def test_a_key_needs_a_known_kind() -> None:
    with pytest.raises(KeyError, match="walk"):
        key_of("walk", seed=0)
