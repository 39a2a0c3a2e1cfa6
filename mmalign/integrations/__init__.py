"""Models and programs from elsewhere: LLaVA's checkpoints, lmms-eval, vLLM."""
