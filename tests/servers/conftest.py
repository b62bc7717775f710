"""Fixtures of the tests of served partition models: the small servers."""

from small_servers import impatient, start_server, tokenizer  # noqa: F401  (fixtures)
