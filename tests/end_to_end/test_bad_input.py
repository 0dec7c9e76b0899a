"""Bad input, as a table: every case is refused in one line with exit code 2, at once, and nothing is written."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from crosskd.cli.main import VERBS, main
from crosskd.errors import UsageError
from helpers_bad_input import LINES, TASK, make_world, packed, prediction, scores, snapshot
from helpers_data import ROWS
from helpers_fresh import in_a_fresh_process

Files = dict[str, str | bytes]


class Case(NamedTuple):
    """A command line below a folder of its own, files that lie there, and a part of the line that it gets.

    ``{w}`` is the folder of `make_world`.
    """

    words: str
    fragment: str
    files: Files = {}  # noqa: RUF012 - of a tuple, which nobody changes
    late: bool = False
    """Whether only transformers, which takes long to import, or a loaded model can tell."""


PREPARE = "prepare --output out --data "
GOOD = PREPARE + "{w}/rows.jsonl "
INSPECT = "inspect {w}/teacher {w}/student --data {w}/data --number_few_shot 0 "
ANSWER = "answer --teacher {w}/teacher --data {w}/data --output out --number_few_shot 0 "
CACHE = "cache --teacher {w}/teacher --data {w}/data --output out --number_few_shot 0 "
DISTILL = "distill --student {w}/student --data {w}/data --output_dir out --method sft --max_steps 1 "
TAUGHT = "distill --student {w}/student --data {w}/data --output_dir out --max_steps 1 --number_few_shot 0 "
CACHED = TAUGHT + "--method uld --teacher_cache "
EVALUATE = "evaluate --model {w}/student --data {w}/data --output out "
MODEL = "evaluate --data {w}/data --output out --model "
COMPARE = "compare {w}/scores/one {w}/scores/other "
REPORT = "report {w}/scores --output page.html "

ROW = json.dumps(ROWS[0])
COLUMNS = "context,question,answer\n"
LONG = b'{"context": "' + b"x" * 10_000_000

PREPARING = [
    # flags
    Case(GOOD + "--limit 0", "--limit: got 0; expected an integer of at least 1"),
    Case(GOOD + "--limit -3", "--limit: got -3"),
    Case(GOOD + "--limit many", "--limit: invalid int value: 'many'"),
    Case(GOOD + "--limit 1.5", "--limit: invalid int value"),
    Case(GOOD + "--validation_fraction nan", "--validation_fraction: got 'nan'; expected a finite number"),
    Case(GOOD + "--validation_fraction inf", "--validation_fraction: got 'inf'"),
    Case(GOOD + "--validation_fraction -0.1", "--validation_fraction: got -0.1"),
    Case(GOOD + "--validation_fraction 1", "expected a number between 0 and 1"),
    Case(GOOD + "--max_characters -5", "--max_characters: got -5"),
    Case(GOOD + "--seed x", "--seed: invalid int value"),
    Case(GOOD + "--map answer", "--map: got 'answer'; expected old=new"),
    Case(GOOD + "--map title=contxt", "did you mean 'context'?"),
    Case(GOOD + "--map '[]'", "expected old=new"),
    Case(GOOD + "--map '{{\"a\": '", "expected old=new"),
    Case(GOOD + "--splitt a", "did you mean '--split'?"),
    Case("prepare --output out", "the following arguments are required: --data"),
    Case("prepare --data {w}/rows.jsonl", "required: --output"),
    Case(GOOD + "stray", "argument 'stray'"),
    # files that are not there, or not what they seem
    Case(PREPARE + "none.jsonl", "there is no file or folder none.jsonl"),
    Case(PREPARE + "rows.txt", "unknown kind", {"rows.txt": "x"}),
    Case(PREPARE + "rows.jsonl", "holds no rows", {"rows.jsonl": ""}),
    Case(PREPARE + "rows.csv", "holds no rows", {"rows.csv": ""}),
    Case(PREPARE + "rows.json", "is not JSON", {"rows.json": ""}),
    Case(PREPARE + "empty", "no data files", {"empty/.keep": ""}),
    Case(PREPARE + "rows.jsonl", "no data files", {"rows.jsonl/.keep": ""}),
    Case(PREPARE + "rows.jsonl", "line 2 is not JSON", {"rows.jsonl": ROW + "\n{'a': 1}\n"}),
    Case(PREPARE + "rows.jsonl", "line 1 is a list", {"rows.jsonl": "[1]\n"}),
    Case(PREPARE + "rows.jsonl", "line 1 is a str", {"rows.jsonl": b'"' + b"x" * 10_000_000 + b'"'}),
    Case(PREPARE + "rows.jsonl", "line 1 is not JSON: Unterminated string", {"rows.jsonl": LONG}),
    Case(PREPARE + "rows.csv", "holds no rows", {"rows.csv": b"x" * 10_000_000}),
    Case(PREPARE + "rows.jsonl", "line 1", {"rows.jsonl": "[" * 200_000}),
    Case(PREPARE + "rows.json", "rows.json", {"rows.json": '{"a":' * 200_000}),
    Case(PREPARE + "rows.jsonl", "line 1", {"rows.jsonl": '{"a": ' + "9" * 10_000 + "}"}),
    Case(PREPARE + "rows.jsonl", "is not UTF-8", {"rows.jsonl": LINES.encode("utf-16")}),
    Case(PREPARE + "rows.csv", "is not UTF-8", {"rows.csv": (COLUMNS + "é,q,a\n").encode("latin-1")}),
    Case(PREPARE + "rows.csv", "separated by ';'", {"rows.csv": "context;question;answer\nC;Q;a\n"}),
    Case(PREPARE + "rows.csv", "2 columns named 'answer'", {"rows.csv": "context,question,answer,answer\nC,Q,a,b\n"}),
    Case(PREPARE + "rows.csv", "more or fewer cells", {"rows.csv": COLUMNS + "C,Q\n"}),
    Case(PREPARE + "rows.csv", "unexpected end of data", {"rows.csv": COLUMNS + '"C,Q,a\n'}),
    Case(PREPARE + "rows.jsonl.gz", "cannot be read", {"rows.jsonl.gz": LINES}),
    Case(PREPARE + "rows.jsonl.gz", "cannot be read", {"rows.jsonl.gz": packed(LINES.encode(), 40)}),
    Case(PREPARE + "rows.arrow", "is not a whole Arrow file", {"rows.arrow": b"ARROW1" + bytes(40)}),
    Case(PREPARE + "rows.parquet", "is not a whole Parquet file", {"rows.parquet": b"PAR1" + bytes(40)}),
    Case(PREPARE + "{w}/data_cut", "data_cut"),
    Case(PREPARE + "{w}/data_no_json", "cannot be read as a saved data set"),
    Case(PREPARE + "{w}/data_types", "cannot be read as a saved data set"),
    Case(PREPARE + "{w}/data_no_split", "cannot be read as a saved data set"),
    # rows
    Case(
        PREPARE + "rows.jsonl",
        "a list of number and text",
        {"rows.jsonl": '{"context": "C", "question": "Q", "answer": ["a", 1]}'},
    ),
    Case(
        PREPARE + "rows.jsonl", "got 'true/false'", {"rows.jsonl": '{"context": "C", "question": "Q", "answer": true}'}
    ),
    Case(
        PREPARE + "rows.jsonl",
        "column 'context': got 'mapping'",
        {"rows.jsonl": '{"context": {}, "question": "Q", "answer": "a"}'},
    ),
    Case(PREPARE + "rows.jsonl", "no column for 'question'", {"rows.jsonl": '{"context": "C", "answer": "a"}'}),
    Case(PREPARE + "rows.jsonl", "conversations", {"rows.jsonl": '{"messages": [{"role": "user", "content": "C"}]}'}),
    Case(
        PREPARE + "rows.jsonl",
        "no example is left of 1 rows",
        {"rows.jsonl": '{"context": "C", "question": "Q", "answer": ""}'},
    ),
    Case(
        PREPARE + "rows.jsonl",
        "half of a character",
        {"rows.jsonl": '{"context": "\\ud83d", "question": "Q", "answer": "a"}'},
    ),
    Case(
        PREPARE + "rows.jsonl --validation_fraction 0.5",
        "one passage in all",
        {
            "rows.jsonl": "".join(
                json.dumps({"context": "C", "question": f"Q{n}", "answer": "a"}) + "\n" for n in range(4)
            )
        },
    ),
    Case(GOOD + "--answers none.jsonl", "no such file"),
    Case(GOOD + "--answers a.jsonl", "no rows", {"a.jsonl": ""}),
    Case(GOOD + "--answers a.jsonl", "a.jsonl", {"a.jsonl": '{"id": "q0"}'}),
    # tasks
    Case(GOOD + "--task nothing", "unknown task 'nothing'"),
    Case(GOOD + "--task none.yaml", "there is no task file none.yaml"),
    Case(GOOD + "--task task.yaml", "is not a text file in UTF-8", {"task.yaml": b"\xff\xfe\x00"}),
    Case(GOOD + "--task task.yaml", "task.yaml", {"task.yaml/.keep": ""}),
    Case(GOOD + "--task task.yaml", "is not YAML", {"task.yaml": "system: [\n"}),
    Case(GOOD + "--task task.yaml", "is not YAML", {"task.yaml": "a:\n\t- b"}),
    Case(GOOD + "--task task.yaml", "got 'list'", {"task.yaml": "- a\n"}),
    Case(GOOD + "--task task.yaml", "'NoneType'", {"task.yaml": ""}),
    Case(GOOD + "--task task.yaml", "the key 'system' occurs twice", {"task.yaml": TASK + "system: again\n"}),
    Case(GOOD + "--task task.yaml", "unknown key 'metric'", {"task.yaml": TASK + "metric: f1\n"}),
    Case(GOOD + "--task task.yaml", "expected a list", {"task.yaml": TASK + "metrics: f1\n"}),
    Case(GOOD + "--task task.yaml", "shot 1", {"task.yaml": TASK + "shots: [1]\n"}),
    Case(GOOD + "--task task.yaml", "expected text", {"task.yaml": TASK.replace("Name it.", "[a, b]")}),
    Case(GOOD + "--task task.yaml", "is not YAML", {"task.yaml": "system: " + "[" * 100_000}),
    # outputs
    Case("prepare --data {w}/rows.jsonl --output /proc/x", "/proc/x cannot be written"),
    Case("prepare --data {w}/rows.jsonl --output /proc/x/y/z", "cannot be written"),
    Case("prepare --data {w}/rows.jsonl --output file", "is a file", {"file": "mine"}),
    Case("prepare --data {w}/rows.jsonl --output file/out", "is a file", {"file": "mine"}),
    Case("prepare --data {w}/rows.jsonl --output full", "is not empty", {"full/mine.txt": "mine"}),
    Case("prepare --data {w}/rows.jsonl --output " + "n" * 300, "File name too long"),
    Case("prepare --data {w}/rows.jsonl --output .", "the current folder"),
    Case("prepare --data rows/rows.jsonl --output rows --overwrite", "another folder", {"rows/rows.jsonl": LINES}),
]

CONFIGURED = [
    Case(GOOD + "--config none.yaml", "No such file"),
    Case(GOOD + "--config folder", "Is a directory", {"folder/.keep": ""}),
    Case(GOOD + "--config c.yaml", "expected a YAML file", {"c.yaml": "limit: [\n"}),
    Case(GOOD + "--config c.yaml", "expected a YAML file", {"c.yaml": b"\xff\xfe\x00"}),
    Case(GOOD + "--config c.yaml", "a mapping of flags", {"c.yaml": "- limit\n"}),
    Case(GOOD + "--config c.yaml", "a mapping of flags", {"c.yaml": ""}),
    Case(GOOD + "--config c.yaml", "did you mean 'limit'?", {"c.yaml": "limt: 3\n"}),
    Case(GOOD + "--config c.yaml", "the key 'limit' occurs twice", {"c.yaml": "limit: 3\nlimit: 4\n"}),
    Case(GOOD + "--config c.yaml", "invalid int value", {"c.yaml": "limit: {a: 1}\n"}),
    Case(GOOD + "--config c.yaml", "c.yaml", {"c.yaml": "limit: 2024-99-99\n"}),
    Case(GOOD + "--config c.yaml", "key 'limit': got 'a list'; expected one value", {"c.yaml": "limit: [1, 2]\n"}),
    Case(GOOD + "--config c.yaml", "--validation_fraction: got 'nan'", {"c.yaml": "validation_fraction: .nan\n"}),
    Case("prepare --output out --config c.yaml", "--data: got", {"c.yaml": 'data: "a\\0b"\n'}),
    Case(
        "prepare --data {w}/rows.jsonl --config c.yaml",
        "expected text without NUL characters",
        {"c.yaml": 'output: "a\\0b"\n'},
    ),
    Case(EVALUATE + "--config c.yaml", "key 'learning_rate'", {"c.yaml": "learning_rate: 1\n"}),
    Case("env --config none.yaml", "No such file"),
]

INSPECTING = [
    Case(INSPECT + "--limit 0", "--limit: got 0"),
    Case(INSPECT + "--limit -2", "--limit: got -2"),
    Case(INSPECT + "--max_length 0", "--max_length: got 0"),
    Case(INSPECT + "--number_few_shot -1", "--number_few_shot: got -1"),
    Case(INSPECT + "--number_few_shot 99", "number_few_shot: got 99"),
    Case(INSPECT + "--supervision mine", "invalid choice: 'mine'"),
    Case(INSPECT + "--supervision teacher", "teacher"),
    Case(INSPECT + "--split nowhere", "has no split 'nowhere'"),
    Case("inspect {w}/teacher {w}/student --data none", "there is no folder none"),
    Case("inspect {w}/teacher {w}/student --data {w}", "does not hold prepared examples"),
    Case("inspect {w}/teacher {w}/student --data {w}/data_no_state", "cannot be read"),
    Case("inspect {w}/teacher {w}/student --data {w}/data_cut", "cannot be read"),
    Case("inspect {w}/teacher --data {w}/data", "required: --student"),
    Case("inspect {w}/none/a {w}/student --data {w}/data", "no such folder"),
    Case("inspect {w}/config_types {w}/student --data {w}/data", "config_types", late=True),
    Case("inspect {w}/tokenizer_cut {w}/student --data {w}/data", "tokenizer of"),
]

ANSWERING = [
    Case(ANSWER + "--batch_size 0", "--batch_size: got 0"),
    Case(ANSWER + "--shard_size -1", "--shard_size: got -1"),
    Case(ANSWER + "--temperature -1", "--temperature: got -1.0"),
    Case(ANSWER + "--temperature nan", "--temperature: got 'nan'"),
    Case(ANSWER + "--top_p 0", "--top_p: got 0.0"),
    Case(ANSWER + "--top_p 1.5", "--top_p: got 1.5"),
    Case(ANSWER + "--max_new_tokens 0", "--max_new_tokens: got 0"),
    Case(ANSWER + "--max_new_tokens 100000", "--max_new_tokens", late=True),
    Case(ANSWER + "--max_length 0", "--max_length: got 0"),
    Case(ANSWER + "--format xml", "invalid choice: 'xml'"),
    Case(ANSWER + "--output {w}/data --overwrite", "the folder of the data"),
    Case(ANSWER + "--backend vllm", "--backend vllm", late=True),
    Case(ANSWER + "--teacher {w}/cut_weights", "cut_weights"),
    Case(ANSWER + "--output /proc/x", "cannot be written"),
]

CACHING = [
    Case(CACHE + "--methods sft", "--methods: got 'sft'"),
    Case(CACHE + "--methods multilevelot", "did you mean 'multilevel_ot'?"),
    Case(CACHE + "--methods ''", "method"),
    Case(CACHE + "--shard 0/1", "--shard: got '0/1'"),
    Case(CACHE + "--shard 3/2", "--shard: got '3/2'"),
    Case(CACHE + "--shard a/b", "--shard: got 'a/b'"),
    Case(CACHE + "--shard ²/³", "--shard: got"),
    Case(CACHE + "--top_k -1", "top_k: got -1"),
    Case(CACHE + "--batch_size 0", "--batch_size: got 0"),
    Case(CACHE + "--shard_size 0", "--shard_size: got 0"),
    Case(CACHE + "--sinkhorn_temperature 0", "sinkhorn_temperature: got 0.0"),
    Case(CACHE + "--sinkhorn_temperature nan", "--sinkhorn_temperature: got 'nan'"),
    Case(CACHE + "--methods uld --resume --output {w}/cache_list", "JSON list"),
    Case(CACHE + "--methods uld --resume --output {w}/cache_no_json", "is not JSON"),
    Case(CACHE + "--methods uld --resume --output {w}/cache_empty", "cache_empty"),
    Case(CACHE + "--supervision teacher", "no answers of a teacher"),
    Case(CACHE + "--resume --overwrite", "contradict"),
    Case(CACHE + "--output file", "is a file", {"file": "mine"}),
]

TRAINING = [
    Case(DISTILL + "--learning_rate -1", "learning_rate: got -1.0; expected 0 or more"),
    Case(DISTILL + "--learning_rate nan", "learning_rate: got 'nan'"),
    Case(DISTILL + "--learning_rate inf", "learning_rate: got 'inf'"),
    Case(DISTILL + "--learning_rate fast", "invalid float value: 'fast'"),
    Case(DISTILL + "--weight_decay -0.1", "weight_decay: got -0.1"),
    Case(DISTILL + "--warmup_steps -1", "warmup_steps: got -1"),
    Case(DISTILL + "--max_grad_norm nan", "max_grad_norm: got 'nan'"),
    Case(DISTILL + "--max_grad_norm -1", "max_grad_norm: got -1.0"),
    Case(DISTILL + "--max_steps 0", "max_steps: got 0"),
    Case(DISTILL + "--max_steps -1 --num_train_epochs 0", "num_train_epochs: got 0.0"),
    Case(DISTILL + "--max_steps -1 --num_train_epochs nan", "num_train_epochs: got 'nan'"),
    Case(DISTILL + "--per_device_train_batch_size 0", "per_device_train_batch_size: got 0"),
    Case(DISTILL + "--gradient_accumulation_steps 0", "gradient_accumulation_steps: got 0"),
    Case(DISTILL + "--adam_beta1 1", "adam_beta1: got 1.0"),
    Case(DISTILL + "--seed -1", "seed: got -1"),
    Case(DISTILL + "--seed 99999999999", "seed: got 99999999999"),
    Case(DISTILL + "--logging_steps 0", "logging_steps"),
    Case(DISTILL + "--save_strategy steps --save_steps 0", "save_steps"),
    Case(DISTILL + "--save_total_limit 0", "save_total_limit: got 0"),
    Case(DISTILL + "--lr_scheduler_type cosin", "cosin"),
    Case(DISTILL + "--lr_scheduler_type cosine_with_min_lr", "lr_scheduler_type cosine_with_min_lr", late=True),
    Case(
        DISTILL + "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{{\"min_lr\": '", "lr_scheduler_kwargs"
    ),
    Case(DISTILL + "--lr_scheduler_kwargs min_lr=1", "lr_scheduler_kwargs: got 'min_lr=1'"),
    Case(DISTILL + "--lr_scheduler_kwargs '[1]'", "lr_scheduler_kwargs: got '[1]'"),
    Case(
        DISTILL + "--lr_scheduler_type polynomial --lr_scheduler_kwargs '{{\"steep\": 1}}'",
        "lr_scheduler_type polynomial",
        late=True,
    ),
    Case(DISTILL + "--optim fastest", "fastest"),
    Case(DISTILL + "--report_to wandbb", "report_to: got 'wandbb'", late=True),
    Case(DISTILL + "--bf16 --fp16", "fp16", late=True),
    Case(DISTILL + "--eval_strategy steps --eval_steps 0", "eval_steps"),
    Case(DISTILL + "--method_settings '{{'", "method_settings: got '{'"),
    Case(DISTILL + "--method_settings '{{\"a\": 1}}'", "sft has no settings"),
    Case(DISTILL + "--method nothing", "method: got 'nothing'"),
    Case(DISTILL + "--task task.yaml", "occurs twice", {"task.yaml": TASK + "system: again\n"}),
    Case(DISTILL + "--max_length 1", "max_length: got 1"),
    Case(DISTILL + "--freeze_layers 99", "freeze_layers", late=True),
    Case(DISTILL + "--peft lora --lora_rank 0", "lora_rank: got 0"),
    Case(DISTILL + "--peft lora --lora_dropout nan", "lora_dropout: got 'nan'"),
    Case(DISTILL + "--peft lora --lora_target_modules nothing", "LoRA", late=True),
    Case(DISTILL + "--supervision teacher", "no answers of a teacher"),
    Case(DISTILL + "--config c.yaml", "did you mean 'learning_rate'?", {"c.yaml": "learning_rat: 1\n"}),
    Case(DISTILL + "--config c.yaml", "the key 'seed' occurs twice", {"c.yaml": "seed: 1\nseed: 2\n"}),
    Case(DISTILL + "--output_dir /proc/x", "/proc/x cannot be written"),
    Case(DISTILL + "--output_dir file/x", "is a file", {"file": "mine"}),
    Case(DISTILL + "--data {w}/scores", "does not hold prepared examples"),
    Case(DISTILL + "--data {w}/data_cut", "cannot be read"),
    Case(TAUGHT, "--teacher: got 'none'"),
    Case(TAUGHT + "--teacher {w}/student", "the student itself"),
    Case(TAUGHT + "--teacher {w}/teacher --distillation_weight -1", "distillation_weight: got -1.0"),
    Case(TAUGHT + "--teacher {w}/teacher --distillation_weight nan", "distillation_weight: got 'nan'"),
    Case(TAUGHT + "--teacher {w}/teacher --sinkhorn_epsilon 0", "sinkhorn_epsilon: got 0.0"),
    Case(TAUGHT + "--teacher {w}/teacher --sinkhorn_iterations 0", "sinkhorn_iterations: got 0"),
    Case(TAUGHT + "--teacher {w}/teacher --top_k -1", "top_k: got -1"),
    Case(TAUGHT + "--teacher {w}/cut_weights", "cut_weights"),
    Case(CACHED + "{w}/scores", "got 'no cache'"),
    Case(CACHED + "{w}/cache_no_json", "is not JSON"),
    Case(CACHED + "{w}/cache_list", "JSON list"),
    Case(CACHED + "{w}/cache_empty", "cache_empty"),
    Case(CACHED + "{w}/cache_types", "cache_types"),
    Case(CACHED + "{w}/cache_cut", "targets-00000.safetensors is damaged", late=True),
    Case(CACHED + "{w}/cache_no_sum", "is unfinished", late=True),
    Case(CACHED + "{w}/cache_other", "data_sha256", late=True),
]

EVALUATING = [
    Case(EVALUATE + "--limit 0", "--limit: got 0"),
    Case(EVALUATE + "--limit -1", "--limit: got -1"),
    Case(EVALUATE + "--batch_size 0", "--batch_size: got 0"),
    Case(EVALUATE + "--max_new_tokens -1", "--max_new_tokens: got -1"),
    Case(EVALUATE + "--max_new_tokens 99999", "--max_new_tokens", late=True),
    Case(EVALUATE + "--max_length 0", "--max_length: got 0"),
    Case(EVALUATE + "--number_few_shot -1", "--number_few_shot: got -1"),
    Case(EVALUATE + "--number_few_shot 99", "number_few_shot: got 99"),
    Case(EVALUATE + "--prompt_style chat", "chat", late=True),
    Case(EVALUATE + "--dtype float8", "invalid choice: 'float8'"),
    Case(EVALUATE + "--split test", "has no split 'test'"),
    Case(EVALUATE + "--bert_score_layer 3", "--bert_score_layer: got 3"),
    Case(EVALUATE + "--bert_score_model {w}/none/of/it", "none/of/it"),
    Case(EVALUATE + "--output /proc/x", "cannot be written"),
    Case(MODEL + "{w}/rows.jsonl", "a .jsonl file"),
    Case(MODEL + "{w}/none.gguf", "no such file"),
    Case(MODEL + "broken.gguf", "broken.gguf", {"broken.gguf": b"GGUF" + bytes(30)}),
    Case(MODEL + "{w}/scores", "a folder without config.json"),
    Case(MODEL + "'a b'", "a b"),
    Case(MODEL + "nobody/nothing", "nobody/nothing"),
    Case(MODEL + "{w}/cut_weights", "cut_weights"),
    Case(MODEL + "{w}/empty_weights", "empty_weights"),
    Case(MODEL + "{w}/no_weights", "no_weights"),
    Case(MODEL + "{w}/pickled", "--allow_pickle"),
    Case(MODEL + "{w}/other_shapes", "other_shapes", late=True),
    Case(MODEL + "{w}/config_no_json", "config_no_json"),
    Case(MODEL + "{w}/config_list", "config_list"),
    Case(MODEL + "{w}/config_latin", "config_latin"),
    Case(MODEL + "{w}/config_types", "config_types", late=True),
    Case(MODEL + "{w}/config_unknown", "config_unknown", late=True),
    Case(MODEL + "{w}/config_encoder", "LlamaForSequenceClassification", late=True),
    Case(MODEL + "{w}/tokenizer_cut", "tokenizer of"),
    Case(MODEL + "{w}/tokenizer_empty", "tokenizer of"),
    Case(MODEL + "{w}/tokenizer_types", "tokenizer of"),
    Case(MODEL + "{w}/tokenizer_latin", "tokenizer of"),
    Case(MODEL + "{w}/tokenizer_config_cut", "tokenizer of"),
    Case(MODEL + "{w}/no_tokenizer", "no_tokenizer", late=True),
    Case(MODEL + "{w}/template_broken --prompt_style chat", "template", late=True),
    Case(MODEL + "{w}/adapter_no_json", "adapter_no_json"),
    Case(MODEL + "{w}/adapter_no_base", "no base_model_name_or_path"),
]

COMPARING = [
    Case("compare {w}/scores/one", "a baseline and at least one other"),
    Case("compare", "required: --runs"),
    Case("compare {w}/scores/one none", "there is no file or folder none"),
    Case(COMPARE + "--resamples 0", "resamples: got 0"),
    Case(COMPARE + "--confidence 2", "confidence: got 2.0"),
    Case(COMPARE + "--confidence nan", "--confidence: got 'nan'"),
    Case(COMPARE + "--seed -1", "--seed: got -1"),
    Case(COMPARE + "--examples -1", "--examples: got -1"),
    Case(COMPARE + "--metrics f2", "metric: got 'f2'"),
    Case(COMPARE + "--metrics bert_score_f1", "bert_score_f1 cannot be compared"),
    Case(COMPARE + "--output table.doc", "the ending '.doc'"),
    Case(COMPARE + "--output /proc/x.csv", "cannot be written"),
    Case(COMPARE + "--output mine.csv", "a file that exists", {"mine.csv": "mine"}),
    Case("compare a.jsonl b.jsonl", "holds no predictions", {"a.jsonl": "", "b.jsonl": ""}),
    Case("compare a.jsonl b.jsonl", "line 1", {"a.jsonl": "{", "b.jsonl": "{"}),
    Case("compare a.jsonl b.jsonl", "without 'answers'", {"a.jsonl": '{"id": 1}', "b.jsonl": '{"id": 1}'}),
    Case("compare a.jsonl b.jsonl", "answers that are no list", {"a.jsonl": prediction(answers="x"), "b.jsonl": ""}),
    Case(
        "compare a.jsonl b.jsonl", "answers that are not all text", {"a.jsonl": prediction(answers=[1]), "b.jsonl": ""}
    ),
    Case("compare a.jsonl b.jsonl", "a question that is no text", {"a.jsonl": prediction(question=7), "b.jsonl": ""}),
    Case(
        "compare a.jsonl b.jsonl", "other references", {"a.jsonl": prediction(), "b.jsonl": prediction(answers=["y"])}
    ),
    Case("compare a.jsonl b.jsonl", "different examples", {"a.jsonl": prediction(), "b.jsonl": prediction(id="b")}),
    Case("compare a.jsonl b.jsonl", "an id twice", {"a.jsonl": prediction() * 2, "b.jsonl": prediction() * 2}),
    Case("compare a.jsonl b.jsonl", "is not a text file in UTF-8", {"a.jsonl": b"\xff", "b.jsonl": b"\xff"}),
    Case("compare a.jsonl b.jsonl", "a.jsonl", {"a.jsonl": b"[" * 200_000, "b.jsonl": ""}),
    Case("compare a b", "scores.json", {"a/predictions.jsonl": prediction(), "a/scores.json": "{", "b/x": ""}),
    Case(
        "compare a b",
        "score f1 is 'high'",
        {"a/predictions.jsonl": prediction(), "a/scores.json": scores(scores={"f1": "high"}), "b/x": ""},
    ),
]

REPORTING = [
    Case("report none --output page.html", "there is no folder none"),
    Case("report empty --output page.html", "nothing to report in empty", {"empty/x": ""}),
    Case("report run --output page.html", "is not JSON", {"run/scores.json": "{"}),
    Case("report run --output page.html", "a JSON list", {"run/scores.json": "[]"}),
    Case("report run --output page.html", "scores is 5", {"run/scores.json": scores(scores=5)}),
    Case("report run --output page.html", "score f1 is None", {"run/scores.json": scores(scores={"f1": None})}),
    Case("report run --output page.html", "score f1 is nan", {"run/scores.json": scores(scores={"f1": float("nan")})}),
    Case("report run --output page.html", "examples is 'many'", {"run/scores.json": scores(examples="many")}),
    Case("report run --output page.html", "seconds is None", {"run/scores.json": scores(seconds=None)}),
    Case("report run --output page.html", "name is 7", {"run/scores.json": scores(name=7)}),
    Case("report run --output page.html", "settings is []", {"run/scores.json": scores(settings=[])}),
    Case("report run --output page.html", "missing", {"run/scores.json": "{}"}),
    Case("report run --output page.html", "line 1", {"run/metrics.jsonl": "oops\n{}\n"}),
    Case("report run --output page.html", "JSON list", {"run/scores.json": scores(), "run/provenance.json": "[1]"}),
    Case(
        "report run --output page.html",
        "answers that are no list",
        {"run/scores.json": scores(), "run/predictions.jsonl": prediction(answers=3)},
    ),
    Case(REPORT + "--baseline nobody", "--baseline: got 'nobody'"),
    Case(REPORT + "--output /proc/x.html", "/proc/x.html"),
    Case(REPORT + "--output mine.html", "a file that exists", {"mine.html": "mine"}),
    Case(REPORT + "--output folder", "folder", {"folder/x": ""}),
    Case(REPORT + "--output file/page.html", "file", {"file": "mine"}),
]

OTHERS = [
    Case("recipes", "expected list, show, copy or run"),
    Case("recipes lst", "did you mean 'list'?"),
    Case("recipes list --table 99", "--table: got 99"),
    Case("recipes list --table one", "invalid int value"),
    Case("recipes list --student nobody", "--student: got 'nobody'"),
    Case("recipes show nothing", "nothing"),
    Case("recipes show ../../../etc/passwd", "etc/passwd"),
    Case("recipes copy table1/opt-350m/qed/sft --output folder", "a folder", {"folder/x": ""}),
    Case("recipes copy table1/opt-350m/qed/sft --output mine.yaml", "a file that exists", {"mine.yaml": "mine"}),
    Case("recipes copy table1/opt-350m/qed/sft --output /proc/x.yaml", "/proc/x.yaml"),
    Case("recipes run nothing --output out", "nothing"),
    Case("recipes run table1/opt-350m/qed/sft --output out --limit 0", "--limit: got 0"),
    Case("recipes run table1/opt-350m/qed/sft --output /proc/x --model_override tiny", "cannot be written"),
    Case("env --jsn", "did you mean '--json'?"),
    Case("env stray", "argument 'stray'"),
    Case("demo --output file", "demo", {"file": "mine"}),
    Case("demo --seed many", "invalid int value"),
    Case("demo --seed -1", "--seed: got -1"),
    Case("demo --quik", "did you mean '--quick'?"),
    Case("nothing --data a", "expected a verb of crosskd"),
    Case("prepar", "did you mean 'prepare'?"),
]

CASES = [
    *PREPARING,
    *CONFIGURED,
    *INSPECTING,
    *ANSWERING,
    *CACHING,
    *TRAINING,
    *EVALUATING,
    *COMPARING,
    *REPORTING,
    *OTHERS,
]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, student_folder: Path, teacher_folder: Path, data_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    folder.mkdir()
    return make_world(folder, student_folder, teacher_folder, data_folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def libraries_are_heard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their logs go to the stream that is looked at; they keep the one that they met first."""
    for name in ("transformers", "datasets"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [logging.StreamHandler(sys.stderr)])


def place(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *folders: Path) -> str:
    """The one line that a command line gets; what lies in the folders stays as it is."""
    before = snapshot(*folders)
    capsys.readouterr()
    code = main(words)
    shown = capsys.readouterr()
    assert code == 2, shown.err
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"crosskd {words[0]}: error: ")
    assert snapshot(*folders) == before
    return lines[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.words.replace("{w}/", "")[:80])
def test_bad_input_is_refused_in_one_line(
    case: Case, world: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(here, case.files)
    assert case.fragment in refused(shlex.split(case.words.format(w=world)), capsys, world, here)


def test_most_bad_input_is_told_before_transformers_is_imported(world: Path, tmp_path: Path) -> None:
    """That takes ten seconds; a mistake is to be told in less than five."""
    cases = [case for case in CASES if not case.late]
    folders = [tmp_path / str(number) for number in range(len(cases))]
    for case, folder in zip(cases, folders, strict=True):
        folder.mkdir()
        place(folder, case.files)
    found = in_a_fresh_process([shlex.split(case.words.format(w=world)) for case in cases], folders)
    for case, (code, _, told, imported) in zip(cases, found, strict=True):
        assert (code, "transformers" in imported) == (2, False), case.words
        assert case.fragment in told
    assert len(cases) > 0.9 * len(CASES)


def test_the_table_is_long_and_covers_every_verb() -> None:
    assert len({(case.words, str(sorted(case.files.items()))) for case in CASES}) == len(CASES) >= 80
    for verb in VERBS:
        assert sum(case.words.startswith(verb) for case in CASES) >= 4 or verb == "env"


@pytest.mark.parametrize(
    ("words", "refusing"),
    [
        (GOOD, "mkdir"),
        (GOOD, "replace"),
        (REPORT, "replace"),
        (COMPARE + "--output table.csv", "replace"),
        ("recipes copy table1/opt-350m/qed/sft --output mine.yaml", "replace"),
    ],
)
@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_a_disk_that_refuses_is_told_in_one_line(
    words: str,
    refusing: str,
    error: OSError,
    world: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise type(error)(error.errno, error.strerror, str(path))

    monkeypatch.setattr(Path, refusing, refuse)
    assert str(error.strerror) in refused(shlex.split(words.format(w=world)), capsys, world, here)


def test_a_traceback_is_there_for_who_wants_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSKD_DEBUG", "1")
    with pytest.raises(UsageError, match="there is no file or folder none"):
        main(["prepare", "--data", "none.jsonl", "--output", "out"])


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("crosskd.cli.env.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["env"])
