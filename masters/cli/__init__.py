"""The shell command ``masters``, also available as ``python -m masters.cli``."""
