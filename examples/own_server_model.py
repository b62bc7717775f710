"""A partition model behind your own HTTP servers. The server pool does the rest: retries, servers that die and return.

    python3 -m darling_plugin … --darling.enable --darling.import_path own_server_model.py \
        --darling.partition_model 'own-server:http://one:8000,http://two:8000?patience=30'

Each server answers two requests, with JSON:

    GET /model                                              {"name": "my-model-1"}
    POST /similarity  {"pairs": [["first", "second"], …]}   {"similarities": [0.97, …]}, each from 0 to 1

Change `learn` and `SimilarityRequest` to what your server speaks. Needs `pip install ".[served]"`.
"""

from darling_plugin import PairwiseModel, register_partition_model
from darling_plugin.partition.servers import Dialect, Server, ServerPool


async def learn(server: Server) -> str:
    """What a server holds; all must hold the same. Asked first, and again to see whether a dropped one is back."""
    return (await server.ask("/model"))["name"]


class SimilarityRequest(Dialect):
    path = "/similarity"
    batch_size = 32  # pairs a request

    def body(self, pairs):
        return {"pairs": [[pair.first, pair.second] for pair in pairs]}

    def read(self, answer, pairs):
        return [float(similarity) for similarity in answer["similarities"]]


@register_partition_model("own-server")
class OwnServer(PairwiseModel):
    """Similarity from your servers.

    Args:
        urls: with commas between them.
        patience: seconds that all servers may be silent; keep it well below --darling.partition_timeout.
    """

    threshold = 0.5

    def __init__(self, urls, *, patience: float = 60.0, threshold=None, clustering=None):
        super().__init__(threshold=threshold, clustering=clustering)
        self._pool = ServerPool(urls, learn, kind="a similarity server", patience=patience)

    def similarity(self, pairs):
        return self._pool.ask(SimilarityRequest(), pairs)
