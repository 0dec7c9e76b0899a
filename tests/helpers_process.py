"""The process that all tests share: each begins with the same random numbers, and undoes what it changes."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch

_LOGGERS = ("crosskd", "transformers", "datasets", "bitsandbytes")
_PYTESTS_OWN = {"PYTEST_CURRENT_TEST"}


def _logs() -> list[tuple[logging.Logger, int, bool, list[logging.Handler]]]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    return [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]


def _set_logs(logs: list[tuple[logging.Logger, int, bool, list[logging.Handler]]]) -> None:
    for logger, level, propagate, handlers in logs:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, list(handlers)


_FRESH = _logs()


def begin() -> None:
    """Seed every global stream of random numbers, and let our log be as if no verb had started."""
    _set_logs(_FRESH[:1])
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@contextmanager
def restored() -> Iterator[None]:
    """Put back environment, working folder, import path, loggers and torch's arithmetic behind the block."""
    variables, folder, paths = dict(os.environ), Path.cwd(), list(sys.path)
    logs = _logs()
    arithmetic = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    try:
        yield
    finally:
        _put_back(variables)
        os.chdir(folder)
        sys.path[:] = paths
        _set_logs(logs)
        torch.set_default_dtype(arithmetic[0])
        torch.set_grad_enabled(arithmetic[1])
        torch.set_num_threads(arithmetic[2])


def _put_back(variables: dict[str, str]) -> None:
    """The environment's variables as they were."""
    for name in os.environ.keys() - variables.keys() - _PYTESTS_OWN:
        del os.environ[name]
    os.environ.update({name: value for name, value in variables.items() if name not in _PYTESTS_OWN})
