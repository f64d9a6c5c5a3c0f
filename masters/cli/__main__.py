"""``python -m masters.cli``, for launchers that start modules."""

from masters.cli.main import main

main()
