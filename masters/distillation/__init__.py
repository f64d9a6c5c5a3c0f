"""One student from one file: ``masters distill run.yaml`` with models and data of your own.

The same engine as in the notebooks: the file becomes a profile, whose questions come from your data, and one
arm of it is run. Read in this order: :mod:`~masters.distillation.run_file` (the file),
:mod:`~masters.distillation.preparation` (what is checked before anything runs),
:mod:`~masters.distillation.estimate` (memory, disk and hours),
:mod:`~masters.distillation.output_folder` (what a second start may continue),
:mod:`~masters.distillation.run` (generate, judge, score, train, evaluate, save),
:mod:`~masters.distillation.outputs` (what is written to ``output_dir``),
:mod:`~masters.distillation.compare` (students of several runs on the same questions).

Departures from the paper: none of the objective's; ``training`` has options of ``transformers.Trainer`` that
the paper does not mention, at the values it gives or implies. Only the top 64 teacher log-probabilities per
token are stored by default, because a vocabulary of 150,000 would take 300 kB per token.
"""
