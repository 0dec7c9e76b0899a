"""What writes a teacher's answers: transformers, or vLLM; both read the same prompt tokens."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from crosskd.errors import UsageError
from crosskd.evaluation.generation import end_token_ids, first_line, generate_answers
from crosskd.models.load import LoadedModel, check_language_model, load_tokenizer, locate
from crosskd.models.quantization import quantization_of
from crosskd.teacher.decoding import Decoding
from crosskd.teacher.sampling import sampled_generation

_LINE_BREAKS = ["\n", "\r"]


class AnswerBackend(Protocol):
    """A teacher that can be asked for answers."""

    name: str
    teacher: str
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    dtype: str
    quantization: str

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        shared_prefix: Sequence[int] = (),
        advance: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The first line that the teacher writes after each prompt, in the order of the prompts."""
        ...


class TransformersBackend:
    """A model loaded by transformers, on the device where it lies.

    Args:
        loaded: The teacher.
        batch_size: Prompts answered at once.
    """

    name = "transformers"

    def __init__(self, loaded: LoadedModel, batch_size: int = 8) -> None:
        self.teacher = loaded.name
        self.tokenizer = loaded.tokenizer
        self.config = loaded.model.config
        self.dtype = str(loaded.model.dtype).removeprefix("torch.")
        self.quantization = quantization_of(loaded.model)
        self._model = loaded.model
        self._batch_size = batch_size

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        shared_prefix: Sequence[int] = (),
        advance: Callable[[int], None] | None = None,
    ) -> list[str]:
        """See `AnswerBackend.answers`."""
        with sampled_generation(self._model, decoding.temperature, decoding.top_p, decoding.prompt_seed):
            return generate_answers(
                self._model,
                self.tokenizer,
                prompts,
                max_new_tokens=decoding.max_new_tokens,
                batch_size=self._batch_size,
                shared_prefix=shared_prefix,
                advance=advance,
            )


class VllmBackend:
    """A model served by vLLM in this process; it batches by itself and keeps shared prefixes.

    Args:
        teacher: Hub id, folder or GGUF file (converted as for transformers).
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        max_length: Longest prompt and answer that room is kept for; None takes the model's limit.
        tensor_parallel_size: GPUs that share the model.
        trust_remote_code: As in `crosskd.models.load.load_model`.
        allow_pickle: Likewise.

    Raises:
        UsageError: vLLM is not installed, or there is no such causal language model.
    """

    name = "vllm"

    def __init__(
        self,
        teacher: str,
        *,
        dtype: str = "auto",
        max_length: int | None = None,
        tensor_parallel_size: int = 1,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        self._vllm = import_vllm()
        location = locate(teacher)
        check_language_model(teacher, location, {"trust_remote_code": trust_remote_code})
        self.teacher = teacher
        self.dtype = dtype
        self.quantization = "none"
        self.config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
        self.tokenizer = load_tokenizer(teacher, trust_remote_code=trust_remote_code)
        self._ends = _stated_ends(location, self.config, self.tokenizer)
        self._engine = self._vllm.LLM(
            model=location,
            dtype=dtype,
            max_model_len=max_length,
            tensor_parallel_size=tensor_parallel_size,
            enable_prefix_caching=True,
            trust_remote_code=trust_remote_code,
            load_format="auto" if allow_pickle else "safetensors",
        )

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        shared_prefix: Sequence[int] = (),
        advance: Callable[[int], None] | None = None,
    ) -> list[str]:
        """See `AnswerBackend.answers`; ``shared_prefix`` is found by vLLM itself."""
        texts = self._texts(prompts, decoding, _LINE_BREAKS)
        # Line breaks before an answer do not end it: such prompts are asked once more, to the end.
        blank = [index for index, text in enumerate(texts) if text and not text.strip()]
        again = self._texts([prompts[index] for index in blank], decoding, []) if blank else []
        for index, text in zip(blank, again, strict=True):
            texts[index] = text
        if advance is not None:
            advance(len(prompts))
        return [first_line(text) for text in texts]

    def _texts(self, prompts: Sequence[Sequence[int]], decoding: Decoding, stop: list[str]) -> list[str]:
        settings = [
            self._vllm.SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                seed=decoding.prompt_seed(prompt) if decoding.temperature else None,
                max_tokens=decoding.max_new_tokens,
                stop=stop,
                stop_token_ids=self._ends,
                include_stop_str_in_output=True,
            )
            for prompt in prompts
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        finished = self._engine.generate(requests, settings, use_tqdm=False)
        return [str(result.outputs[0].text) for result in finished]


def import_vllm() -> Any:
    """The vLLM package.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UsageError(
            "--backend vllm",
            got=f"no vLLM ({error})",
            expected="the extra of that name",
            fix='pip install "crosskd[vllm]", or leave the backend at transformers',
        ) from error


def _stated_ends(location: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end tokens that the transformers backend would stop at."""
    has_file = not Path(location).is_dir() or (Path(location) / "generation_config.json").is_file()
    try:
        own = GenerationConfig.from_pretrained(location) if has_file else GenerationConfig.from_model_config(config)
    except OSError:  # a hub id without the file
        own = GenerationConfig.from_model_config(config)
    return end_token_ids(cast(PreTrainedModel, SimpleNamespace(generation_config=own)), tokenizer)
