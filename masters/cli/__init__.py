"""The shell command ``masters``, also available as ``python -m masters.cli``.

Read in this order: :mod:`~masters.cli.main` (profiles, notebooks, book, studies), :mod:`~masters.cli.distill`
and :mod:`~masters.cli.data` (models and data of your own), :mod:`~masters.cli.responses` (stored responses),
:mod:`~masters.cli.cluster` (generation on Ray).
"""
