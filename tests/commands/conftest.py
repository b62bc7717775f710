"""Fixtures of the tests of commands: darling-partition run on a few lines, a file of partition models."""

from types import SimpleNamespace

import pytest
from partition_command import MODELS, joined, parsed

from darling_plugin.commands.partition import main


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return str(path)


@pytest.fixture
def command(tmp_path, capfdbinary):
    """Runs main() on a file of these lines; a dict is a line of JSON."""

    def run(lines, *flags):
        path = tmp_path / "groups.jsonl"
        path.write_bytes(joined(lines))
        status = main([str(path), *flags])
        out, err = capfdbinary.readouterr()
        return SimpleNamespace(status=status, out=out, records=parsed(out), err=err.decode())

    return run
