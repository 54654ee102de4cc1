"""The check of commit subjects, as the commit-msg hook and as the lint run it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "commit-subjects"


def check(script: Path, *arguments: Path) -> tuple[int, str]:
    """Exit status and standard error."""
    done = subprocess.run([script, *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("subject", "status"), [("a" * 72, 0), ("é" * 72, 0), ("a" * 73, 1)], ids=["72", "72-in-two-bytes-each", "73"]
)
def test_message_file_subject_length_decides_status(subject: str, status: int, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_text(f"{subject}\n\n{'body' * 40}\n")
    found, error = check(SCRIPT, message)
    assert found == status
    assert (f"73 characters, 72 are allowed: {subject}" in error) == bool(status)


def test_history_long_subjects_since_the_script_are_reported(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "core.hooksPath=/dev/null")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "--message", "before " * 20)
    script = tmp_path / ".ci" / SCRIPT.name
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    assert check(script) == (0, "")
    git("add", ".")
    git("commit", "--message", "Add the script")
    assert check(script) == (0, "")
    git("commit", "--allow-empty", "--message", "b" * 80)
    status, error = check(script)
    assert status == 1
    assert error.splitlines() == [f"commit subject of 80 characters, 72 are allowed: {'b' * 80}"]
