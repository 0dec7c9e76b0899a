"""A model with a tokenizer from elsewhere: the published checkpoints came without one."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from crosskd.errors import UsageError
from crosskd.models.load import DTYPES, LoadedModel, check_language_model, load_model, load_tokenizer, locate


def load_pair(
    model: str, tokenizer: str | None, *, dtype: str, trust_remote_code: bool, allow_pickle: bool
) -> LoadedModel:
    """Load a model, and the tokenizer that is named or, if none is, its own.

    Args:
        model: Hub id or folder.
        tokenizer: Likewise; None takes the model's.
        dtype: See `load_model`.
        trust_remote_code: Likewise.
        allow_pickle: Likewise.

    Raises:
        UsageError: See `load_model`.
    """
    location = locate(model)
    complete = tokenizer is None or locate(tokenizer) == location
    if complete or (Path(location) / "adapter_config.json").is_file():
        loaded = load_model(
            model, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, encoder_decoder=True
        )
        return loaded if complete else loaded._replace(tokenizer=_tokenizer(tokenizer, trust_remote_code))
    options = {"revision": "main", "trust_remote_code": trust_remote_code}
    config = check_language_model(model, location, options, encoder_decoder=True)
    architecture = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        bare = architecture.from_pretrained(
            location, dtype=DTYPES[dtype], use_safetensors=None if allow_pickle else True, **options
        )
    except OSError as error:
        raise UsageError(f"model {model!r}", got=str(error).strip().split("\n")[0]) from error
    return LoadedModel(bare.eval(), _tokenizer(tokenizer, trust_remote_code), model)


def _tokenizer(source: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    assert source is not None  # where it is, the model's own is taken
    return load_tokenizer(source, trust_remote_code=trust_remote_code)
