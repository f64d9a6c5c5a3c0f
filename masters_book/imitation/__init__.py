"""When is a masked teacher easier to imitate? A study of Eq. 1, 2 and 5 on a pretrained language model.

The paper holds that a teacher without its smallest weights is easier to imitate (Eq. 1, 2), and distills from
it with the Jensen-Shannon divergence (Eq. 5). Here the two steps of that argument are measured one at a time:
whether the mask lowers the divergence between teacher and student, for students of several distances, and
whether a student taught by the masked teacher ends nearer to the whole one.

Read ``plan`` (what is measured and what counts as an effect, fixed before the first run), ``texts``,
``models``, ``distances``, ``changes``, ``learning``, ``tables``, ``results``.
"""
