"""Count the attacks of `make fuzz` by kind and end: ``python tools/fuzz_table.py LOG``.

Writes data/results/fuzz.csv.
"""

import sys
from pathlib import Path

import pandas as pd

from masters.runtime.files import ROOT
from masters_book.results.intact import write_intact

if __name__ == "__main__":
    attacks = pd.read_csv(Path(sys.argv[1]), sep="\t", names=["attack", "end"])
    assert set(attacks["end"]) <= {"named", "harmless"}, "a line of the log is cut"
    ends = pd.crosstab(attacks["attack"], attacks["end"]).reindex(columns=["named", "harmless"], fill_value=0)
    ends.insert(0, "tried", ends.sum(axis=1))
    print(ends.to_string())
    write_intact(ROOT / "data" / "results" / "fuzz.csv", ends.reset_index().to_csv(index=False))
