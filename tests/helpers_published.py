"""Loader files as users of the published code have them, and the command lines that use them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration

from helpers_tokenizers import unigram_tokenizer

LOADER = """\
import json
import os

from datasets import Dataset


def tokenize(item, tokenizer, encoder_decoder=False):
    prompt = f"Context: {item['context']}\\nQuestion: {item['question']}\\nAnswer:"
    if encoder_decoder:
        input_ids = tokenizer.encode(prompt, add_special_tokens=True, return_tensors="pt")[0]
        labels = tokenizer.encode(item["answer"], add_special_tokens=True, return_tensors="pt")[0]
        return {"input_ids": input_ids, "labels": labels, "attention_mask": [1] * len(input_ids)}
    context = tokenizer.encode(f"{tokenizer.bos_token}{prompt}", add_special_tokens=False)
    answer = tokenizer.encode(f" {item['answer']}{tokenizer.eos_token}", add_special_tokens=False)
    combined = {"input_ids": context + answer, "labels": [-100] * len(context) + answer}
    return dict(combined, attention_mask=[1] * len(combined["input_ids"]))


def get_split(dataset_config, tokenizer, split):
    with open(os.path.join(os.path.dirname(dataset_config.file), f"{split}.json")) as stream:
        dataset = Dataset.from_list(json.load(stream))
    if dataset_config.training_size < 1:
        dataset = dataset.select(range(int(len(dataset) * dataset_config.training_size)))
    return dataset.map(
        lambda item: tokenize(item, tokenizer, dataset_config.encoder_decoder), remove_columns=list(dataset.features)
    )
"""


def items(count: int) -> list[dict[str, str]]:
    """Contexts and answers of several lengths."""
    names = ["Ann", "Bob sings", "the river", "in the hills", "118 patients"]
    return [
        {
            "context": f"Passage {i} tells of {names[i % 5]}. " * (1 + i % 2),
            "question": f"what does passage {i} tell of",
            "answer": f"{names[i % 5]} {i}",
        }
        for i in range(count)
    ]


def write_loader(folder: Path, *, train: int = 9, validation: int = 0, text: str = LOADER) -> Path:
    """A loader file with its data beside it; no validation file where there are no rows for one."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", validation)):
        if count:
            (folder / f"{split}.json").write_text(json.dumps(items(count)))
    path = folder / "loader.py"
    path.write_text(text)
    return path


def finetuning_words(student: Path, loader: Path, output: Path, *more: str) -> list[str]:
    """A command line of ``finetuning.py`` without a teacher."""
    return [
        "--model_name", str(student), "--dataset.file", str(loader), "--output_dir", str(output), "--lr", "1e-3",
        "--num_epochs", "1", "--batch_size_training", "4", "--val_batch_size", "2", *more,
    ]  # fmt: skip


def save_t5(folder: Path) -> Path:
    """A random T5 with a unigram tokenizer."""
    tokenizer = unigram_tokenizer()
    torch.manual_seed(0)
    pad = int(tokenizer.pad_token_id)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=pad, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
