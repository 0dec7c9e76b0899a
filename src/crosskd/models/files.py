"""Where a model lies, and whether its files are whole: known without torch, so that a mistake is told at once."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from crosskd.errors import UsageError
from crosskd.files import read_json

CONFIG, ADAPTER_CONFIG, TOKENIZER_CONFIG = "config.json", "adapter_config.json", "tokenizer_config.json"
_INDEX = "model.safetensors.index.json"
_GGUF_VERSIONS = (2, 3)


def find_model(source: str | Path) -> Path | None:
    """The folder or GGUF file that a user means; None for a hub id.

    Args:
        source: Folder, ``.gguf`` file or hub id.

    Raises:
        UsageError: It looks like a path and nothing is there, or what is there is no model.
    """
    path = Path(source).expanduser()
    what, kinds = f"model {str(source)!r}", "a folder, a GGUF file or a hub id"
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(what, got="no such file", expected="a GGUF file")
        return path
    if path.is_dir():
        if not (path / CONFIG).is_file() and not is_adapter(path):
            raise UsageError(what, got="a folder without config.json", expected="a folder written by save_pretrained")
        return path
    if path.is_file():
        raise UsageError(what, got=f"a {path.suffix or 'plain'} file", expected=kinds)
    if path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
        raise UsageError(what, got="no such folder", expected=kinds)
    return None


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter of peft."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def check_model_files(
    source: str | Path, *, weights: bool = True, tokenizer: bool = True, allow_pickle: bool = False
) -> None:
    """Refuse a model whose files are missing or cannot be read; what they say is left to transformers.

    Args:
        source: Folder (an adapter's base model is looked at, too), ``.gguf`` file (its header is) or hub id.
        weights: Whether weights must be there, and whole.
        tokenizer: The same for its tokenizer.
        allow_pickle: Accept weights in pickle format, unread.

    Raises:
        UsageError: As for `find_model`, or names the file that is damaged.
    """
    place = find_model(source)
    if place is None:
        _check_offline(str(source))
    elif place.is_file():
        check_gguf_header(place)
    elif is_adapter(place):
        base, own = base_of(place), (place / TOKENIZER_CONFIG).is_file()
        check_adapter_file(place, allow_pickle=allow_pickle)
        if not is_adapter(base):
            check_model_files(base, weights=weights, tokenizer=not own, allow_pickle=allow_pickle)
    else:
        read_json(place / CONFIG)
        if weights:
            _check_weights(place, source, allow_pickle)
        if tokenizer:
            _check_tokenizer(place, source)


def base_of(folder: str | Path) -> str:
    """The model that an adapter belongs to: hub id or folder.

    Raises:
        UsageError: The adapter does not say, or its configuration is damaged.
    """
    base = read_json(Path(folder) / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(f"adapter {folder}", got="no base_model_name_or_path", expected="the model it belongs to")
    return base


def check_adapter_file(folder: str | Path, *, allow_pickle: bool) -> None:
    """Refuse an adapter without weights, or with pickled ones where that was not allowed.

    Raises:
        UsageError: It is such a one.
    """
    if (Path(folder) / "adapter_model.safetensors").is_file():
        return
    pickled = (Path(folder) / "adapter_model.bin").is_file()
    if not (pickled and allow_pickle):
        raise UsageError(
            f"adapter {folder}",
            got="weights in pickle format only (adapter_model.bin)" if pickled else "no weights",
            expected="adapter_model.safetensors",
            fix="give --allow_pickle to read them" if pickled else None,
        )


def check_gguf_header(path: Path) -> None:
    """Refuse what is no GGUF file before minutes are spent on it.

    Raises:
        UsageError: It is another kind of file, or of another version.
    """
    with path.open("rb") as stream:
        magic, version = stream.read(4), int.from_bytes(stream.read(4), "little")
    if magic != b"GGUF" or version not in _GGUF_VERSIONS:
        got = f"GGUF version {version}" if magic == b"GGUF" else "another kind of file"
        raise UsageError(f"model {str(path)!r}", got=got, expected="a GGUF file of version 2 or 3")


def _check_offline(hub_id: str) -> None:
    """Without the hub, a model by its id must be in the hub's cache on this machine."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not constants.HF_HUB_OFFLINE:
        return
    try:
        found = [try_to_load_from_cache(hub_id, name) for name in (CONFIG, ADAPTER_CONFIG)]
    except HFValidationError as error:
        raise UsageError(f"model {hub_id!r}", got=str(error), expected="a folder, a GGUF file or a hub id") from error
    if not any(isinstance(path, str) for path in found):
        raise UsageError(
            f"model {hub_id!r}",
            got="no such folder, and no copy from the hub (HF_HUB_OFFLINE is set)",
            expected="a folder, a GGUF file or a hub id",
            fix="check the name, or unset HF_HUB_OFFLINE",
        )


def _check_tokenizer(folder: Path, source: str | Path) -> None:
    """Read the files that are there as transformers would; which of them a tokenizer needs, only its class knows."""
    try:
        if (folder / TOKENIZER_CONFIG).is_file():
            read_json(folder / TOKENIZER_CONFIG)
        if (folder / "tokenizer.json").is_file():
            Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UsageError(f"tokenizer of {str(source)!r}", got=str(error), fix="get the files again") from error


def _check_weights(folder: Path, source: str | Path, allow_pickle: bool) -> None:
    what = f"model {str(source)!r}"
    paths = _weight_files(folder)
    if not paths:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled and allow_pickle:
            return
        raise UsageError(
            what,
            got=f"weights in pickle format only ({pickled[0].name})" if pickled else "no weights",
            expected="safetensors files",
            fix="give --allow_pickle to read them" if pickled else None,
        )
    for path in paths:
        if not path.is_file():
            raise UsageError(what, got=f"no file {path.name}", expected=f"the files that {_INDEX} names")
        try:
            with safe_open(path, framework="numpy"):
                pass  # it compares what the file says of itself with its size
        except SafetensorError as error:
            raise UsageError(what, got=f"{path.name} is damaged ({error})", fix="get the files again") from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read."""
    if (folder / _INDEX).is_file():
        named = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(named, dict):
            raise UsageError(f"{folder / _INDEX}", got="no weight_map", expected="which file holds which weight")
        return [folder / name for name in sorted(set(map(str, named.values())))]
    return sorted(folder.glob("model*.safetensors"))
