"""Distillation as a `transformers.Trainer`."""
