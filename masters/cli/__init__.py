"""The shell command ``masters``, also available as ``python -m masters.cli``.

Read in this order: :mod:`~masters.cli.main` (the command, and training one arm), :mod:`~masters.cli.distill`
and :mod:`~masters.cli.data` (models and data of your own), :mod:`~masters.cli.responses` (stored responses),
:mod:`~masters.cli.cluster` (generation on Ray). The commands of the notebooks, the book and the studies are
in :mod:`masters_book.commands`.
"""
