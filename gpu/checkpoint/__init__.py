"""Checkpoints in Hugging Face format: found, fetched, checked field by field, read."""
