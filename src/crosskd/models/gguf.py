"""A GGUF file becomes a safetensors folder, once."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from crosskd.errors import UsageError, first_line
from crosskd.hashes import cache_directory, known_sha256
from crosskd.models.files import check_gguf_header

logger = logging.getLogger(__name__)
_FORMAT = 1  # raised when a conversion would come out different


def convert_gguf(path: Path) -> Path:
    """Dequantize a GGUF file to float32 and keep it as a safetensors folder, named by the file's SHA-256.

    A second call with the same bytes returns the same folder without reading the weights. The folder's
    ``crosskd_source.json`` holds the file's name and checksum.
    """
    checksum = known_sha256(path)
    folder = cache_directory() / "gguf" / f"{path.stem}-{checksum[:16]}-v{_FORMAT}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as temporary:
        unfinished = Path(temporary) / "model"
        _write_plain_model(path, unfinished)
        source = {"file": path.name, "sha256": checksum}
        (unfinished / "crosskd_source.json").write_text(json.dumps(source) + "\n")
        if not folder.is_dir():  # another process may have been faster
            unfinished.rename(folder)
    return folder


def _write_plain_model(path: Path, folder: Path) -> None:
    check_gguf_header(path)
    logger.info("converting %s to safetensors, once (kept in %s)", path.name, cache_directory() / "gguf")
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # a damaged file makes every library say something else
        raise UsageError(
            f"model {str(path)!r}",
            got=first_line(error),
            expected="a GGUF file of an architecture that transformers can read",
        ) from error
    # save_pretrained refuses a model that says it is quantized; its tensors are plain by now
    config = model.config
    delattr(config, "quantization_config")
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
