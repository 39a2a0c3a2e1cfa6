"""Training: the loop, the DeepSpeed engine under it, the optimizer, checkpoints, and what each pass sees."""
