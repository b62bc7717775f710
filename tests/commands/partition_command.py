"""Runs `darling-partition`, in this process or as a command, for the tests of both."""

import json
import signal
import subprocess
import sys

COLOURS = {"prompt": "Name a colour", "responses": ["Red!", "red", "I say blue", ""]}
LEXICAL = ("--partition_model", "lexical")

MODELS = """
import os, time
import torch
from darling_plugin import PartitionModel

class ByLength(PartitionModel):
    def partition(self, groups):
        return [[len(response) for response in group.responses] for group in groups]

class Talker(ByLength):
    def partition(self, groups):
        print("a model that talks")
        os.write(1, b"past Python, too\\n")
        return super().partition(groups)

class Picky(ByLength):
    def partition(self, groups):
        for group in groups:
            if group.prompt == "poison":
                raise ZeroDivisionError("no\\nway")
            if group.prompt == "panic":
                raise SystemExit("panic")
            if group.prompt == "illegal":
                os.write(2, b"asked\\n")
                raise torch.AcceleratorError("CUDA error: an illegal memory access\\nwas encountered")
            if group.prompt == "hang":
                time.sleep(600)
        return super().partition(groups)

class NotThere(ByLength):
    def __init__(self):
        raise OSError("no weights at /nowhere")
"""


def joined(lines):
    encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return b"".join(line + b"\n" for line in encoded)


def parsed(out):
    *lines, rest = out.split(b"\n")
    assert rest == b"", "every line is ended"
    return [json.loads(line) for line in lines]


def numbered(count, **more):
    return [{"prompt": f"prompt {k}", "responses": ["x", "y" * (k % 2 + 1)], **more} for k in range(count)]


def start(*flags, **options):
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    # A shell's background job ignores Ctrl-C, and so would all that it starts.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-m", "darling_plugin.commands.partition", *flags], **options)
