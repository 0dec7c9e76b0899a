"""Models: found, checked, loaded, and asked for the logits of their answers."""

from crosskd.models.answer_logits import answer_logits
from crosskd.models.load import LoadedModel, load_model, load_tokenizer

__all__ = ["LoadedModel", "answer_logits", "load_model", "load_tokenizer"]
