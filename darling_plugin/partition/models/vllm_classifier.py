"""Partition by a causal classifier in vLLM, in this process: what pairs share of their beginning is computed once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.partition.base import Pair, PairwiseModel
from darling_plugin.partition.models.cross_encoder import ClassifierSettings, longest_pair, probability_equivalent
from darling_plugin.partition.options import DTYPES, Between, OneOf
from darling_plugin.registry import register_partition_model

if TYPE_CHECKING:
    import torch


@register_partition_model("vllm")
class VLLMClassifier(PairwiseModel):
    """P(equivalent) of a causal sequence classifier that vLLM runs: `vllm:<path or Hub name>`.

    Input and score are those of `cross-encoder` with the same path and options. The first response's keys and values
    serve every pair that begins with it (prefix caching, in whole blocks of 16 tokens on a GPU, of 128 on a CPU). The
    classifier for maths that was released with arXiv 2509.02534 is such a one.

    vLLM's engine runs in this process, and ends with it.

    Args:
        threshold: default: 0.5; of a classifier that darling-train-partition made, the one in its config.json.
        max_length: tokens of a pair, by default 2048, or as it was trained; the longer response is cut first. Never
            more than the model takes.
        max_response_length: tokens of each response, cut first.
        tokenizer: path or Hub name, where it does not lie beside the weights.
        special_tokens: those before, between and after the responses, with commas, in place of the tokenizer's own;
            default: as it was trained.
        dtype: of weights and activations, as vLLM names them; "auto" makes float16 of a float32 checkpoint.
        gpu_memory_utilization: the share of the GPU's memory that vLLM takes for the weights and the cached keys and
            values. Give the partition actor no less: --darling.gpus_per_partition_actor.

    Raises DarlingError when vLLM is missing or cannot load the model, for a checkpoint without a classification head,
    and for encoders.
    """

    threshold = 0.5
    calibrated = True
    local = True
    option_limits: ClassVar = {
        "max_length": Between(1),
        "max_response_length": Between(1),
        "gpu_memory_utilization": Between(0.01, 1),
        "dtype": OneOf(("auto", *DTYPES)),
    }

    @classmethod
    def check_arguments(cls, *arguments: Any, **options: Any) -> None:
        super().check_arguments(*arguments, **options)
        _three_tokens(options.get("special_tokens"))

    def __init__(
        self,
        path: str,
        *,
        threshold: float | None = None,
        clustering: str | None = None,
        max_length: int | None = None,
        max_response_length: int | None = None,
        tokenizer: str | None = None,
        special_tokens: str | None = None,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.2,
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer

        from darling_plugin.partition.engine.pair_tokens import PairTokens

        loaded_tokenizer = AutoTokenizer.from_pretrained(tokenizer or path)
        config = AutoConfig.from_pretrained(path)
        settings = ClassifierSettings.read(config).replaced(
            threshold=threshold, max_length=max_length, special_tokens=_three_tokens(special_tokens)
        )
        super().__init__(threshold=settings.threshold, clustering=clustering)
        self._logit_shift = settings.logit_shift
        self.max_length = longest_pair(loaded_tokenizer, config, settings.max_length)
        self._pair_tokens = PairTokens(loaded_tokenizer, self.max_length, max_response_length, settings.special_tokens)
        self.cuts = self._pair_tokens.cuts
        _check_classifier(config, path)

        vllm = _import_vllm(path)
        try:
            self.llm = vllm.LLM(
                path,
                tokenizer=tokenizer,
                runner="pooling",
                convert="classify",
                dtype=dtype,
                max_model_len=self.max_length,
                # vLLM (0.29) never ends a pair of exactly max_model_len tokens whose prefill it has cut in two.
                enable_chunked_prefill=False,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=True,  # compiling takes a minute and gains little where every step is a long prefill
            )
        except Exception as error:
            raise DarlingError(
                f"a classifier that vLLM loads from {path} into {gpu_memory_utilization:g} of a GPU's memory",
                f"{type(error).__name__}: {error}",
                "free memory on that GPU or set gpu_memory_utilization (under Ray: and "
                f"{spelled('gpus_per_partition_actor')}), or use cross-encoder:{path}",
            ) from error
        if self.llm.model_config.attn_type != "decoder":
            # An encoder has nothing to share. BERT's token types would be lost, and with use_activation=False, see
            # below, vLLM (0.29) leaves out a part of ModernBERT's head.
            raise DarlingError(
                f"a causal classifier for vllm:{path}, whose pairs share what their beginning costs",
                f"{', '.join(config.architectures)}, which vLLM calls {self.llm.model_config.attn_type}",
                f"use cross-encoder:{path}",
            )
        # No softmax there: which activation vLLM would apply depends on the checkpoint's configuration.
        self._logits = vllm.PoolingParams(use_activation=False)
        # Transformers' causal classifiers read the last token that is not padding, vLLM reads the last one. Some
        # tokenizers end a text with the very token that they pad with.
        pad_id = loaded_tokenizer.pad_token_id
        self._unread = loaded_tokenizer.eos_token_id if pad_id is None else pad_id

    def similarity(self, pairs: Sequence[Pair]) -> torch.FloatTensor:
        import torch

        if not pairs:
            return torch.empty(0)
        tokens = [self._read(pair.ids.tolist()) for pair in self._pair_tokens(pairs)]
        # Like beginnings next to each other, so that what is computed for one is still there for the next.
        order = sorted(range(len(pairs)), key=tokens.__getitem__)
        try:
            outputs = self.llm.encode(
                [{"prompt_token_ids": tokens[k]} for k in order],
                pooling_params=self._logits,
                pooling_task="classify",
                use_tqdm=False,
            )
        except Exception:
            # What this step was to compute is in the cache by name, and would be taken as computed.
            self.llm.reset_prefix_cache()
            raise
        scores = torch.empty(len(pairs))
        logits = torch.stack([output.outputs.data for output in outputs]).float()
        scores[order] = probability_equivalent(logits, self._logit_shift)
        return scores

    def _read(self, ids: list[int]) -> list[int]:
        end = len(ids)
        while end > 1 and ids[end - 1] == self._unread:
            end -= 1
        return ids[:end]


def _three_tokens(tokens: str | None) -> tuple[str, str, str] | None:
    if tokens is None:
        return None
    three = tuple(tokens.split(","))
    if len(three) != 3:
        raise DarlingError(
            "three special_tokens with commas between: before, between and after the responses",
            repr(tokens),
            "write them as in special_tokens=<|im_start|>,<|im_end|>,<|im_end|>",
        )
    return three


def _check_classifier(config: Any, path: str) -> None:
    architectures = config.architectures or []
    if not any("SequenceClassification" in name for name in architectures):
        # vLLM would make a head out of whatever lies in memory.
        raise DarlingError(
            f"a sequence classifier in {path}",
            f"the architecture {', '.join(architectures) or 'unknown'}",
            "name a model that was trained to classify pairs",
        )


def _import_vllm(path: str) -> ModuleType:
    # Read when the engine starts: it runs in our process, so nothing of it is left, GPU memory included, once the
    # partition actor's watchdog has ended that without a word.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        import vllm
    except ImportError as error:
        raise DarlingError(
            f"vLLM, for vllm:{path}", str(error), f"pip install vllm (0.29), or use cross-encoder:{path}"
        ) from error
    return vllm
