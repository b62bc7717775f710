"""Servers that hold a partition model: the pool, and the dialects that `served:` speaks. The names that others use."""

from darling_plugin.partition.servers.pool import Dialect, ServerPool
from darling_plugin.partition.servers.server import BadAnswer, Server

__all__ = ["BadAnswer", "Dialect", "Server", "ServerPool"]
