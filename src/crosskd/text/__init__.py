"""Tokens and text, without models: tasks, prompts, answer spans, alignment of two tokenizations."""
