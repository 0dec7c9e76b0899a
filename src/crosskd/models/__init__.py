"""Models: found, checked, loaded, and asked for the logits of their answers."""
