import os

# Before anything imports transformers: the models of the tests are on disk, and nothing may look for them elsewhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
