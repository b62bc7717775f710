"""Fixtures of whole training runs: tiny models, and the files that a run reads."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # launching, recompute, tiny_model: shared by the files beside this one

import launching
import tiny_model


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("model") / "tied")


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("model") / "untied", tie_word_embeddings=False)


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory) -> Path:
    return tiny_model.build_reward_model(tmp_path_factory.mktemp("model") / "reward")


@pytest.fixture
def inputs(tmp_path) -> Path:
    launching.write_inputs(tmp_path)
    return tmp_path
