"""Chat templates in the manner of each family: what they do to system turns, roles, white space and dates."""

from __future__ import annotations

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)
_SPLIT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
)

LLAMA2 = (
    _SPLIT_SYSTEM + "{% for message in rest %}" + _ALTERNATE + "{% set text = message['content'] | trim %}"
    "{% if loop.first and system %}{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + text %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + text + ' [/INST]' }}"
    "{% else %}{{ ' ' + text + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""The system text goes into the first user turn; every user turn begins a sequence of its own."""

LLAMA3 = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    + _SPLIT_SYSTEM
    + "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
    "{{ system | trim }}<|eot_id|>{% for message in rest %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""System turn, always there, with the day's date, as of Llama 3.1."""

MISTRAL = (
    _SPLIT_SYSTEM + "{{ bos_token }}{% for message in rest %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "[INST] {% if loop.last and system %}{{ system + '\n\n' }}{% endif %}{{ message['content'] }}[/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The system text goes into the LAST user turn."""

GEMMA3 = (
    _SPLIT_SYSTEM + "{{ bos_token }}{% for message in rest %}" + _ALTERNATE + "<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if loop.first and system %}{{ system + '\n\n' }}{% endif %}{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""The system text goes into the first user turn; the assistant is called ``model``."""

_CHATML = (
    "{% for message in messages %}SYSTEM<|im_start|>{{ message['role'] }}\nCONTENT<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML = _CHATML.replace(
    "SYSTEM",
    "{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}",
).replace("CONTENT", "{{ message['content'] }}")
"""System turn, with words of its own where none is given, as of Qwen1.5 and SmolLM2."""

QWEN3 = _CHATML.replace("SYSTEM", "").replace("CONTENT", "{{ message['content'].split('</think>')[-1].lstrip('\n') }}")
"""System turn; thoughts of earlier answers are left out."""

PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>\n{{ message['content'] }}<|end|>\n"
    "{% elif message['role'] == 'assistant' %}<|assistant|>\n{{ message['content'] }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""System turns are left out without a word."""
