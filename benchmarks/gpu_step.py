"""A whole training step at the paper's scale: a random student of Pythia 1B's shape, cached targets of random logits.

Float32 weights, bfloat16 autocast, AdamW (fused), 8 sequences with a prompt of 400 tokens and an answer of 20, logits
of the answer alone. No padding: the steps differ by their losses, not by what attention makes of a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from crosskd.losses import StudentAnswers, create_method, targets_from_logits
from crosskd.models.answer_logits import answer_logits

WEIGHT = 0.15
BATCH, PROMPT, ANSWER, TEACHER = 8, 400, 20, 32_000
SIZE = f"{BATCH} x ({PROMPT} + {ANSWER})"


def student_config(quick: bool) -> GPTNeoXConfig:
    """Pythia 1B, or a toy."""
    if quick:
        return GPTNeoXConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
    return GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=8,
        intermediate_size=8192,
        max_position_embeddings=2048,
    )


class TrainingStep:
    """One student, one optimizer and one batch; ``steps`` differ in the loss alone."""

    def __init__(self, device: str, *, quick: bool) -> None:
        self.device = device
        batch, prompt, self.answer = (2, 10, 5) if quick else (BATCH, PROMPT, ANSWER)
        config = student_config(quick)
        torch.manual_seed(0)
        with torch.device(device):
            self.model = GPTNeoXForCausalLM(config).float()
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        generator = torch.Generator(device).manual_seed(0)
        length = prompt + self.answer - 1  # the last token of the answer is predicted, not read
        ids = torch.randint(config.vocab_size, (batch, length), generator=generator, device=device)
        self.batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(length, device=device).expand(batch, -1).contiguous(),
        }
        shape = batch, self.answer
        self.labels = torch.randint(config.vocab_size, shape, generator=generator, device=device)
        self.mask = torch.ones(shape, dtype=torch.bool, device=device)
        vocabulary = 200 if quick else TEACHER
        self.teacher = torch.randn(*shape, vocabulary, generator=generator, device=device, dtype=torch.bfloat16) * 3

    def steps(self) -> dict[str, Callable[[], Callable[[], Tensor]]]:
        """Makers of the steps, by name."""
        made: dict[str, Callable[[], Callable[[], Tensor]]] = {"SFT step": lambda: self.step("sft")}
        for matching in ("fast", "greedy", "exact"):
            made[f"{matching}, cached, step"] = lambda m=matching: self.step("multilevel_ot", matching=m)
        return made

    def step(self, name: str, **settings: object) -> Callable[[], Tensor]:
        """Forward, loss, backward, update, with targets made once."""
        method = create_method(name, **settings)
        request = method.request()
        made = None if request is None else targets_from_logits(self.teacher, self.mask, request)
        targets = None if made is None else made.to(dtype=torch.float16)

        def run() -> Tensor:
            with torch.autocast(self.device, torch.bfloat16):
                logits = answer_logits(self.model, self.batch, self.answer)
            terms = method.terms(StudentAnswers(logits, self.labels, self.mask), targets)
            distillation = WEIGHT * terms["distillation"] if method.needs_teacher else 0
            loss = (terms["cross_entropy"] + distillation) / self.labels.numel()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return run
