"""What benchmarks/official_protocol.py sends as the official client, read by a small server in vLLM's place."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_classifiers import make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # the benchmarks import what lies beside them

import official_protocol

from darling_plugin.partition import Pair
from darling_plugin.partition.engine.pair_tokens import WrittenOutPairs

SPEAK = {"cat": 0.25, "dog": 0.5}  # P(equivalent) by a word of the first response


@pytest.fixture
def server():
    """Answers as vLLM's /classify; `asked` has the path and the body of each request."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            equivalent = SPEAK["cat" if "cat" in body["input"][0].split()[:3] else "dog"]
            data = [{"index": 0, "label": "0", "probs": [1 - equivalent, equivalent], "num_classes": 2}]
            answer = json.dumps({"id": "1", "object": "list", "model": body["model"], "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}", asked=asked)
    http.shutdown()
    http.server_close()


def test_a_pair_is_one_text_with_the_special_tokens_written_out_and_white_space_collapsed(server):
    tokenizer = make_tokenizer("bert")
    odd = Pair("never sent", "\n\n  the\tcat\r\nsat\u00a0 on \u2003the mat\n", "a dog\n\n\tran   ")
    scores = official_protocol.official(server, tokenizer, [odd])
    sent = "<cls> the cat sat on the mat <sep> a dog ran <sep>"
    assert server.asked == [("/classify", {"model": "classifier", "input": [sent]})]
    assert scores.tolist() == [0.25]
    # ?input=official is the same: what that server's tokenizer makes of the text.
    (ours,) = WrittenOutPairs(tokenizer, 8192, official_protocol.WORDS)([odd])
    assert ours.ids.tolist() == tokenizer(sent)["input_ids"]


def test_each_response_is_cut_after_1022_words_and_scores_come_in_the_order_of_the_pairs(server):
    pairs = [Pair("p", "cat " * 1100, "dog " * 1023), Pair("p", "dog", "cat " * 1022)] * 4
    scores = official_protocol.official(server, make_tokenizer("bert"), pairs)
    assert scores.tolist() == [0.25, 0.5] * 4
    bodies = [body["input"][0].split() for _, body in server.asked]
    assert len(bodies) == 8, "one request a pair"
    for words in bodies:
        first, second = words[1 : words.index("<sep>")], words[words.index("<sep>") + 1 : -1]
        assert (len(first), len(second)) in ((1022, 1022), (1, 1022))
