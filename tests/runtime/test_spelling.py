"""The spelling of code, pages, notebooks and tests, as `make lint` checks it."""

import subprocess
import sys

from masters.runtime.files import ROOT


def test_no_word_is_misspelled() -> None:
    done = subprocess.run([sys.executable, "-m", "codespell_lib"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
