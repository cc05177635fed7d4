"""Reasoning for a contest's questions, written by an OpenAI-compatible endpoint or by a local model."""
