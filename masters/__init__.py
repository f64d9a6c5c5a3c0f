"""Masters: mask the teacher, reinforce the student. A tested reproduction of arXiv 2512.22238."""

__version__ = "0.1.0"
