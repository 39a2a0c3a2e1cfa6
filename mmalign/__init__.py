"""mmalign: train, evaluate and explain models whose visual tokens are aligned with the words a language model knows."""

__version__ = "0.1.0"
