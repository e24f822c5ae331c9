"""Pages that are made from the program say what the program says."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = Path(sysconfig.get_path("scripts")) / "deepwell"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.skipif(
    sysconfig.get_platform() != "linux-x86_64", reason="the table has rows that exist on x86-64 only; so does the page"
)
def test_kernel_page_is_what_the_table_says() -> None:
    done = run(sys.executable, "tools/kernel_docs.py", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("subcommand", ["", "info", "quantize", "dequantize", "inspect", "selftest", "bench"])
def test_command_page_quotes_the_help(subcommand: str) -> None:
    page = (ROOT / "docs" / "command.md").read_text()
    text = run(COMMAND, *([subcommand] if subcommand else []), "--help").stdout.rstrip()
    assert text
    assert f"```\n{text}\n```" in page, f"docs/command.md: the text of `deepwell {subcommand} --help` is not fresh"


def test_command_page_explains_every_subcommand() -> None:
    text = run(COMMAND, "--help").stdout
    listed = re.findall(r"^  ([a-z]+)  +\w", text.split("Commands:")[1].split("Options:")[0], re.MULTILINE)
    page = (ROOT / "docs" / "command.md").read_text()
    assert set(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == set(listed)
