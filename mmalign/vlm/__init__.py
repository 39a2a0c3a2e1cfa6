"""The composed model: vision encoder, adapter and language model as one."""
