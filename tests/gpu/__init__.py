"""What only a GPU can tell: that every CUDA branch computes what its slow reference does (`-m gpu`), and how fast.

`python -m tests.gpu` runs both within nine minutes and writes tests/speed/RESULTS.md; without a GPU, or with --tiny,
the same code at tiny sizes, in about a minute.
"""
