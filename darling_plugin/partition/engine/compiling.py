"""When the layers of a model go through torch.compile, and how."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.cpu_vec_isa import pick_vec_isa

from darling_plugin.errors import DarlingError

logger = logging.getLogger(__name__)

# Tokens times weights of the linear layers that take at least about as long to score as the layers to compile: no run
# is held up for longer than it has run. In tokens alone models are far apart. An H200 scored 3.8 million tokens of
# ModernBERT-base (4e14) in that time, 0.17 million of a 4B model (6e14); two CPU cores 72,000 of MiniLM (8e11), 6,700
# of ModernBERT-base (7e11), 2,900 of 12 layers of Qwen3 (5e11). Compiling gains less there, so it waits for longer.
COMPILE_AFTER = {"cuda": 5e14, "cpu": 3e12}


def tokens_before_compiling(base: Any, tokens: float | None) -> float:
    """How many tokens `base` scores before torch.compile is used: `tokens`, or by default COMPILE_AFTER's work."""
    if tokens is None:
        return COMPILE_AFTER[base.device.type] / max(linear_weights(base), 1)
    if isinstance(tokens, bool) or not isinstance(tokens, int | float) or not tokens >= 0:
        raise DarlingError("a number of tokens from 0 to Infinity as compile_after", repr(tokens), "correct it")
    return tokens


class CompileLater:
    """Compiles the layers of `base` once `tokens` tokens have been scored.

    By tokens and not by time: the same calls are compiled at the same point, and round alike.
    """

    def __init__(self, base: Any, tokens: float) -> None:
        self.base, self.tokens_left, self.compiled = base, tokens, False

    def before_scoring(self, tokens: int) -> None:
        """Call it before each call that scores `tokens` tokens: compiles if the calls before were enough."""
        if not self.compiled and self.tokens_left <= 0:
            self.compiled = True
            compile_layers(self.base)
        self.tokens_left -= tokens


def compile_layers(base: Any) -> None:
    """Has torch.compile make what runs in the layers of `base`, when they are called next.

    An encoder with biases is compiled whole on a CPU, with its weights as constants, since its linear layers can then
    add the biases themselves; other layers share what is compiled for the first of each kind. Where compiling fails,
    all of them go on as they were.
    """
    whole = compiled_whole(base)
    # The code on a CPU steps by the width of its vectors, and PyTorch's cache on disk (torch 2.13) does not ask which:
    # made with AVX-512 and found again where there is AVX2, as in a folder that machines share, it computes nonsense.
    # Options are part of what it asks for.
    options = {"freezing": whole, "cpp.simdlen": pick_vec_isa().bit_width()} if base.device.type == "cpu" else None
    modules = [base.encoder] if whole else layers_of(base)
    plain = {module: module.forward for module in modules}

    def or_plain(module: torch.nn.Module) -> Callable[..., Any]:
        fast = torch.compile(plain[module], dynamic=True, options=options)

        def forward(*args: Any, **kwargs: Any) -> Any:
            try:
                return fast(*args, **kwargs)
            except TorchDynamoException as error:
                logger.warning("torch.compile failed, going on without it: %s", error)
                for each in modules:
                    each.forward = plain[each]
                return plain[module](*args, **kwargs)

        return forward

    for module in modules:
        module.forward = or_plain(module)


def compiled_whole(base: Any) -> bool:
    """Whether its encoder is compiled in one piece, and not layer by layer."""
    return base.device.type == "cpu" and hasattr(base, "encoder")


def linear_weights(base: Any) -> int:
    """How many weights the linear layers of `base` have: a token's FLOPs are twice that, and its attention."""
    return sum(layer.weight.numel() for layer in base.modules() if isinstance(layer, torch.nn.Linear))


def layers_of(base: Any) -> Sequence[torch.nn.Module]:
    return next(module for module in base.modules() if isinstance(module, torch.nn.ModuleList))
