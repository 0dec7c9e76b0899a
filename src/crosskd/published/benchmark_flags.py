"""Flags of ``benchmark.py``: those of the published code, and a few of ours at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosskd.errors import UsageError
from crosskd.published.flags import flag, read_flags

NO_EFFECT = {
    "num_workers": "prompts are made before the first answer",
    "f": "it names a way to train",
}
"""Flags of the published script that change nothing here."""


@dataclass
class BenchmarkFlags:
    """What the user asks of ``benchmark.py``; defaults are those of the published code."""

    model_id: str = flag(str, None, "model: hub id or folder", required=True)
    model_tokenizer: str | None = flag(str, None, "its tokenizer: hub id or folder [the model's]")
    dataset_id: str = flag(str, None, "data: hub id, or folder", required=True)
    split_name: str = flag(str, "test", "split to answer")
    from_disk: bool = flag(bool, False, "dataset_id is a folder written by save_to_disk")
    task: str = flag(str, "qa", "qa, qa_generative, qa_medical, summary_dialogue, summary, or a YAML file of your own")
    mapping: str | None = flag(str, None, "JSON file of columns to rename: {old: new}")
    mapping_dict: str = flag(str, "text", "key of the text, where answers are mappings")
    context: bool = flag(bool, False, "tell models without chat template what the task is")
    title: bool = flag(bool, False, "put the title into the prompt")
    number_few_shot: int = flag(int, 0, "examples in the prompt")
    context_length: int | None = flag(int, None, "leave out examples whose prompt is longer, in tokens")
    batch_size: int = flag(int, 4, "examples answered at once")
    bfloat: bool = flag(bool, False, "model in bfloat16, where this machine is fast in it")
    seq2seq: bool | None = flag(bool, None, "the model is an encoder-decoder model [detected]")
    bert_score: bool = flag(bool, False, "BERTScore too")
    output_path: str | None = flag(
        str, None, "folder for SHOTSshots.json [benchmark_results/MODEL/DATASET/titled or untitled]"
    )
    save_predictions: bool = flag(bool, False, "write predictions_SHOTSshots.json too")

    bert_score_model: str | None = flag(str, None, "ours: encoder for BERTScore [roberta-large]")
    bert_score_layer: int | None = flag(int, None, "ours: its layer [the recommended one]")
    max_new_tokens: int = flag(int, 150, "ours: longest answer, in tokens")
    overwrite: bool = flag(bool, False, "ours: replace files of an earlier run")
    trust_remote_code: bool = flag(bool, False, "ours: run the code that a model brings")
    allow_pickle: bool = flag(bool, False, "ours: read weights in pickle format, which can run code")


def read_benchmark_flags(words: Sequence[str]) -> BenchmarkFlags:
    """Read and check the command line of ``benchmark.py``.

    Raises:
        UsageError: See `crosskd.published.flags.read_flags`; or a value out of its range.
    """
    flags = read_flags(words, BenchmarkFlags, NO_EFFECT)
    for name in ("batch_size", "max_new_tokens", "context_length"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}", got=value, expected="an integer of at least 1")
    if flags.number_few_shot < 0:
        raise UsageError("--number_few_shot", got=flags.number_few_shot, expected="0 or more")
    return flags
