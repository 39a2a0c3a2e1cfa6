"""Files, YAML with its lines, word lists, pictures and checkpoints: what everything above reads and writes with."""
