"""The shell command ``masters``; ``python -m masters.cli`` is the same."""
