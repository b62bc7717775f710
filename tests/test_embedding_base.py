"""EmbeddingModel: a vector a text, compared by cosine."""

import pytest
import torch
from small_partition_models import Angles, FirstLetter

from darling_plugin.errors import DarlingError
from darling_plugin.partition import (
    Group,
)

# --- embeddings


def test_embeddings_are_compared_by_cosine_each_text_embedded_once():
    model = Angles()
    groups = [Group("p", ["0", "25", "80", "0 "]), Group("q", ["25", "90", ""])]
    similarity = model.similarities([Group("p", ["0", "25", "80"])])[0]
    expected = torch.tensor([0.0, 25.0, 80.0]).deg2rad()
    assert torch.allclose(similarity, (expected[:, None] - expected[None, :]).cos(), atol=1e-6)

    model.calls.clear()
    assert [each.tolist() for each in model.partition(groups)] == [[0, 0, 1, 0], [0, 1, 2]]
    assert model.calls == [["0", "25", "80", "90"]]
    assert Angles(threshold=0.95).partition(groups)[0].tolist() == [0, 1, 2, 0]


class Little:
    """Room for `limit` texts at once."""

    def __init__(self, limit, error):
        self.limit, self.error, self.sizes = limit, error, []

    def take(self, items):
        self.sizes.append(len(items))
        if len(items) > self.limit:
            raise self.error


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 bytes."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasGemmEx(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
@pytest.mark.parametrize("base", [FirstLetter, Angles])
def test_out_of_memory_halves_the_batch_and_goes_on(base, error):
    room = Little(3, error)

    class Short(base):
        def similarity(self, pairs):
            room.take(pairs)
            return super().similarity(pairs)

        def embed(self, texts):
            room.take(texts)
            return super().embed(texts)

    groups = [Group("p", ["0", "90", "91", "180", "1", "270"]), Group("q", ["5", "5", "6"])]
    expected = [labels.tolist() for labels in base().partition(groups)]
    assert [labels.tolist() for labels in Short().partition(groups)] == expected
    assert room.sizes[0] > 3
    room.limit = 0
    with pytest.raises(type(error)):
        Short().partition(groups)


def test_an_embedding_of_length_zero_is_unlike_all():
    class Zero(Angles):
        def embed(self, texts):
            return torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])

    assert Zero().partition([Group("p", ["a", "b", "c"])])[0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("result", [torch.zeros(2, 4), torch.zeros(3), torch.full((3, 2), float("nan"))])
def test_bad_embeddings_are_refused(result):
    class Bad(Angles):
        def embed(self, texts):
            return result

    with pytest.raises(DarlingError, match="Bad"):
        Bad().partition([Group("p", ["a", "b", "c"])])
