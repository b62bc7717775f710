"""benchmarks/gpu.py with its tiny shapes on whatever is here, and tables that are written row by row."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # the benchmarks import what lies beside them

import common
import cross_encoders
import gpu
import kernel_times
import limit
import report

from darling_plugin.partition.engine import kernels


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Compiling, large products and samples, and quiet rounds take half a minute for what says nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setitem(limit.MATRIX, "cpu", 256)
    monkeypatch.setattr(common, "TRIES", 1)
    monkeypatch.setattr(kernels, "ENCODED", ([60, 12], [60, 12]))
    monkeypatch.setattr(kernels, "SHARED", ([12, 12], [12, 24]))


def rows_of(folder, name):
    table = json.loads((folder / f"gpu_{name}.json").read_text())
    assert "unfinished" not in table and table["command"] == f"python benchmarks/gpu.py {name}"
    assert len({tuple(row) for row in table["rows"]}) == 1, "rows have the same columns"
    return table["rows"]


def test_the_whole_command_runs_with_tiny_shapes(tmp_path, capsys):
    assert gpu.run(list(gpu.SECTIONS), gpu.TINY, tmp_path) == []
    row = rows_of(tmp_path, "limit")[0]
    assert row["share of the limit"] > 0
    for kind in ("matrix products", "attention, global", "attention, windowed"):
        assert 0 < row[f"{kind}, s"] < row["its kernels, s"]
    assert row["its kernels, s"] == pytest.approx(sum(row[f"{kind}, s"] for kind in kernel_times.KINDS))
    assert [row["model"] for row in rows_of(tmp_path, "compiling")] == ["encoder", "causal"]
    assert all(row["chosen (tried)"].startswith("torch's SDPA") for row in rows_of(tmp_path, "attention"))
    assert [row["tokens at once"] for row in rows_of(tmp_path, "batches")] == list(gpu.TINY.budgets)
    assert {row["dtype"] for row in rows_of(tmp_path, "precision")} == {"float32", "bfloat16"}
    assert [row["model"] for row in rows_of(tmp_path, "groups")] == ["default", "embedding"]
    assert rows_of(tmp_path, "libraries")[0]["largest score difference"] < 0.03
    said = capsys.readouterr().out
    assert json.dumps(row) in said, "each row is in the log, too"
    tables = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert report.render(tables).count("## ") == len(gpu.SECTIONS)


def test_causal_tokens_are_those_that_are_read_once():
    model = gpu.causal_classifier(gpu.TINY)
    inputs, tokens = gpu.inputs_of(model, (2, 4, 5))
    assert len(inputs) == 2 * 6
    # Of each group three first texts and six second ones.
    special = sum(map(len, inputs[:1])) - 2 * 5
    assert tokens == 2 * (3 + 6) * 5 + 2 * (3 * 2 + 6 * (special - 2))


def test_copies_and_products_are_told_apart():
    a, b = torch.randn(2, 200, 200)
    found = kernel_times.kernels(lambda: (a @ b).t().contiguous())
    assert found["matrix products"] > 0 and found["copies"] > 0
    assert found["attention, global"] == found["attention, windowed"] == 0


def test_a_gpus_kernels_count_by_the_operator_that_started_them(monkeypatch):
    """What torch.profiler gives of a GPU, played: operators with their kernels, the kernels again, and ranges."""

    def operator(name, kernel=0, parent=None):
        kernels_of = [SimpleNamespace(duration=kernel)] if kernel else []
        return SimpleNamespace(
            name=name, device_type=DeviceType.CPU, kernels=kernels_of, self_cpu_time_total=1e9, cpu_parent=parent
        )

    def on_gpu(microseconds, is_range=False):
        span = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(device_type=DeviceType.CUDA, is_user_annotation=is_range, time_range=span)

    attend = operator("attention, windowed")
    clone = operator("aten::clone", parent=attend)
    operators = [
        *(operator("aten::addmm", 500_000), attend, clone, operator("aten::copy_", 20_000, clone)),
        *(operator("flash::varlen", 200_000, attend), operator("triton_norm", 10_000)),
    ]
    # 40,000 were started by no operator that is known: a graph of torch.compile's.
    on_card = [on_gpu(each) for each in (500_000, 20_000, 200_000, 10_000, 40_000)] + [on_gpu(220_000, is_range=True)]
    seen = nullcontext(SimpleNamespace(events=lambda: [*operators, *on_card]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: seen)
    expected = {"matrix products": 0.5, "attention, global": 0, "attention, windowed": 0.2, "copies": 0.02}
    assert kernel_times.kernels(lambda: None) == pytest.approx({**expected, "the rest": 0.05})


def test_a_section_that_fails_keeps_its_rows_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(sizes):
        """A title

        What is compared.
        """
        yield {"row": 1}
        raise RuntimeError("the GPU has fallen off the bus")

    def whole(sizes):
        """Another

        What is compared.
        """
        yield {"row": 2}

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": broken, "whole": whole})
    assert gpu.run(["broken", "whole"], gpu.TINY, tmp_path) == ["broken"]
    table = json.loads((tmp_path / "gpu_broken.json").read_text())
    assert table["unfinished"] and table["rows"] == [{"row": 1}]
    assert "Unfinished" in report.render({"broken": table})
    assert "Unfinished" not in report.render({"whole": json.loads((tmp_path / "gpu_whole.json").read_text())})


def test_a_table_is_there_before_its_next_row_is_measured(tmp_path):
    seen = []

    def rows():
        for number in (1, 2):
            path = tmp_path / "some.json"
            seen.append(json.loads(path.read_text())["rows"] if path.exists() else None)
            yield {"number": number}

    common.save("some", "A title", "A title\n\ncommand\n\nabout", rows(), folder=tmp_path)
    assert seen == [None, [{"number": 1}]]


def test_the_model_for_timings_is_not_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(cross_encoders, "MODELS", tmp_path)
    monkeypatch.setattr(cross_encoders, "fine_tune", lambda *arguments: pytest.fail("it is trained"))
    assert (cross_encoders.path_of("minilm-random") / "model.safetensors").exists()


def test_an_unknown_section_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "limits"])
    with pytest.raises(SystemExit, match="no section limits"):
        gpu.main()
