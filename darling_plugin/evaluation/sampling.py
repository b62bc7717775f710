"""Samples from a model: vLLM here, or a server that speaks OpenAI's API; what was sampled before is kept."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from darling_plugin.errors import DarlingError, spelled
from darling_plugin.evaluation.fields import REFERENCES, id_of, is_chat, text_of
from darling_plugin.partition.groups import lines_of

PROMPTS = ("prompt", "input", "question", "problem")  # what a row may call it
PROMPTS_AT_ONCE = 32  # handed to vLLM, or asked of a server, between two saves


@dataclass(frozen=True)
class Settings:
    """How many samples of each prompt, and how they are drawn; top_p is 1, as NoveltyBench has it."""

    n: int = 10
    temperature: float = 1.0
    max_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Refused:
    """In place of a prompt's samples: why there are none, as of one that is too long for the model."""

    reason: str


def read_prompts(source: str, split: str = "train") -> list[dict[str, Any]]:
    """Prompts with their ids and right answers, from a JSONL file or a data set, of Hugging Face's Hub or in a folder.

    A row's prompt is under prompt, input, question or problem, a text or a chat's messages, which go to the model as
    `messages`; `id` is the row's own, else its number.

    Raises DarlingError for a source that is neither, and for a row without a prompt.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, row in _rows(source, split):
        given = next((row[key] for key in PROMPTS if row.get(key)), None)
        if not (isinstance(given, str) or is_chat(given)):
            raise DarlingError("a prompt in each row", f"{source}, row {number}: {sorted(row)}", "name it prompt")
        more = {"messages": given} if is_chat(given) else {}
        more |= {key: row[key] for key in REFERENCES if key in row}
        prompt = {"id": id_of(row, number), "prompt": text_of(given), **more}
        if found.setdefault(prompt["id"], prompt) is not prompt:
            raise DarlingError("another id for each prompt", f"{source}, row {number}: {prompt['id']}", "correct it")
    if not found:
        raise DarlingError("prompts to sample from", f"none in {source}", "name another")
    return list(found.values())


def _rows(source: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if Path(source).exists() and not Path(source).is_dir():  # a pipe is no file
        with open(source, "rb") as file:
            for number, line in enumerate(lines_of(file), start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise DarlingError(
                        "JSON with a prompt in each line", f"{source}, line {number}: {error}", "correct the line"
                    ) from error
                yield number, row if isinstance(row, dict) else {}
        return
    try:
        import datasets

        loaded = datasets.load_dataset(source, split=split)
    except Exception as error:  # of a dozen kinds, from the hub, the file system or the data set's own code
        raise DarlingError(
            "a JSONL file, or a data set that Hugging Face's datasets can load", f"{source}: {error}", "correct it"
        ) from error
    yield from enumerate(loaded, start=1)


def sample(prompts: Sequence[dict[str, Any]], generate: Any, settings: Settings, kept: Path, name: str) -> int:
    """Leaves a line a prompt with `generations` in `kept`; those that are there already are not made again.

    Their right answers become those of `prompts`, where they were corrected since.

    A prompt that the model refuses is named on stderr, and in a file of its own, `kept` with .refused before its
    ending, which each call writes anew: the next one tries them again. Returns how many there are.

    Args:
        prompts: as read_prompts gives them.
        generate: some of them, settings -> of each in turn a list of n texts, or Refused, as they come; its `source`
            says which model it is.
        kept: a JSONL file that is appended to as samples come, so that a run that is stopped goes on.
        name: of the model.

    Raises DarlingError where `kept` has samples of another model, other settings or other prompts, and where all
    prompts are refused, or the first PROMPTS_AT_ONCE for one and the same reason.
    """
    made_by = {"model": name, "source": generate.source, "settings": vars(settings)}
    done = _done(kept, {each["id"]: each for each in prompts}, made_by)
    missing = [prompt for prompt in prompts if prompt["id"] not in done]
    kept.parent.mkdir(parents=True, exist_ok=True)
    refused: list[dict[str, Any]] = []
    refused_file = kept.with_suffix(f".refused{kept.suffix}")
    refused_file.unlink(missing_ok=True)
    with (
        kept.open("a", encoding="utf-8", errors="backslashreplace") as file,
        tqdm(total=len(prompts), initial=len(prompts) - len(missing), unit="prompt", desc=name) as bar,
    ):
        for start in range(0, len(missing), PROMPTS_AT_ONCE):
            some = missing[start : start + PROMPTS_AT_ONCE]
            for prompt, texts in zip(some, generate(some, settings), strict=True):
                bar.update()
                if isinstance(texts, Refused):
                    refused.append({**prompt, "refused": texts.reason})
                    tqdm.write(f"prompt {prompt['id']}: refused: {texts.reason}", file=sys.stderr)
                    _write_lines(refused_file, refused)
                    continue
                file.write(_lines([{**prompt, **made_by, "generations": texts}]))
                file.flush()
            # Prompts that are too long are refused each for a length of its own: others may be shorter.
            for_one_reason = len({each["refused"] for each in refused}) == 1
            if len(refused) == start + len(some) and not done and (for_one_reason or len(refused) == len(prompts)):
                found = f"all {len(refused)} asked for refused, the first: {refused[0]['refused']}"
                raise DarlingError(f"prompts that {name} takes", found, "correct them")
    return len(refused)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(_lines(rows), encoding="utf-8", errors="backslashreplace")


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _done(path: Path, prompts: dict[str, dict[str, Any]], made_by: dict[str, Any]) -> set[str]:
    """The ids of the prompts in a file of samples; what a kill left unfinished is taken off it."""
    if not path.exists():
        return set()
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        path.write_bytes(whole[:end])
    try:
        found = [json.loads(line) for line in whole[:end].split(b"\n")[:-1]]
        of_ours = all({"id", "prompt", "generations", *made_by} <= record.keys() for record in found)
    except (ValueError, AttributeError):
        of_ours = False
    if not of_ours:
        needed = f"samples that {made_by['model']} left in {path}"
        raise DarlingError(needed, "lines of another kind", "name another folder")
    for record in found:
        before = {key: record[key] for key in made_by}
        if before != made_by:
            wanted, there = _told(made_by), _told(before)
        elif _messages(prompts.get(record["id"], {"prompt": None})) != _messages(record):
            wanted, there = "these prompts", f"another, {record['prompt']!r:.80}"
        else:
            continue
        raise DarlingError(
            f"samples of {wanted}", f"{path} with those of {there}", "name another folder, or remove that file"
        )
    now = [{**prompts[record["id"]], **made_by, "generations": record["generations"]} for record in found]
    if _lines(now) != _lines(found):
        unfinished = path.with_suffix(".unfinished")
        _write_lines(unfinished, now)
        unfinished.replace(path)
    return {record["id"] for record in found}


def _told(made_by: dict[str, Any]) -> str:
    return f"{made_by['model']} ({made_by['source']}) with {made_by['settings']}"


def _messages(prompt: dict[str, Any]) -> list[dict[str, Any]]:
    return prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}]


def seed_of(prompt: dict[str, Any], settings: Settings) -> int:
    """Of a prompt's samples: another for each, one text under two ids included, or all would have the same noise."""
    text = f"{settings.seed} {prompt['id']} {prompt['prompt']}"
    return zlib.crc32(text.encode("utf-8", errors="replace")) >> 1


def folder_as_of(folder: Path) -> str:
    """A model's folder, and when its weights or settings were last written."""
    of_model = [file for kind in ("safetensors", "bin", "pt", "json") for file in folder.glob(f"*.{kind}")]
    changed = max((file.stat().st_mtime for file in of_model), default=0)
    return f"{folder.resolve()}, of {datetime.fromtimestamp(changed):%Y-%m-%d %H:%M:%S}"


class OwnVllm:
    """Samples with vLLM in this process, through the model's chat template.

    Attributes:
        source: the folder and when its files were last changed, or the model's name on Hugging Face's Hub.
    """

    def __init__(self, path: str) -> None:
        self.source = folder_as_of(Path(path)) if Path(path).is_dir() else path
        try:
            # Before torch is asked for a GPU: vLLM has it look without CUDA, which no forked process could use then.
            import vllm
        except ImportError as error:
            raise DarlingError(
                f"vLLM, for {spelled('model')}", f"{error}", f"install it, or use {spelled('url')} of a server"
            ) from error
        import torch

        self._vllm = vllm
        if not torch.cuda.is_available():
            # vLLM's CPU build would take nearly all of the memory for its cache, and bind each thread to a core.
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        options = {"enable_prefix_caching": True}
        if not torch.cuda.is_available():
            # A prompt that is read in two parts makes vLLM turn its generator back, which a CPU's cannot.
            options |= {"enforce_eager": True, "enable_chunked_prefill": False}
        try:
            self._llm = vllm.LLM(path, **options)
        except (OSError, ValueError, RuntimeError) as error:
            do = f"see what vLLM said above: correct the path, free memory, or use {spelled('url')} of its server"
            raise DarlingError(f"a model that vLLM loads from {path}", f"{error}", do) from error

    def __call__(self, prompts: Sequence[dict[str, Any]], settings: Settings) -> list[list[str] | Refused]:
        try:
            return self._generate(prompts, settings)
        except Exception as error:
            if not self._is_refusal(error):
                raise DarlingError(
                    "samples from vLLM", f"{error}", "look at its log; the same command goes on"
                ) from error
            if len(prompts) == 1:
                return [Refused(f"{error}")]
        return [one for prompt in prompts for one in self([prompt], settings)]  # vLLM does not say which

    def close(self) -> None:
        """Ends the engine's process, which holds most of a GPU's memory: reward and partition models come next."""
        self._llm.llm_engine.engine_core.shutdown()

    @staticmethod
    def _is_refusal(error: Exception) -> bool:
        """Of a prompt, not of the engine: a ValueError in older releases of vLLM, a client's error in newer ones."""
        return isinstance(error, ValueError) or any(each.__name__ == "VLLMClientError" for each in type(error).__mro__)

    def _generate(self, prompts: Sequence[dict[str, Any]], settings: Settings) -> list[list[str]]:
        parameters = [
            self._vllm.SamplingParams(
                n=settings.n,
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                seed=seed_of(prompt, settings),
            )
            for prompt in prompts
        ]
        if self._llm.get_tokenizer().chat_template is None:
            outputs = self._llm.generate([each["prompt"] for each in prompts], parameters, use_tqdm=False)
        else:
            outputs = self._llm.chat([*map(_messages, prompts)], parameters, use_tqdm=False)
        return [[each.text for each in output.outputs] for output in outputs]


class NoAnswer(Exception):
    """A server's reply has no samples."""


class Server:
    """Samples from a server with OpenAI's chat completions, several prompts at a time; OPENAI_API_KEY where set.

    Attributes:
        source: where the server has the model from, as vLLM's says (one that was started again elsewhere is the same);
            else the server's URL.
    """

    CONCURRENCY = 16
    # HTTP statuses of a request that no other one has a part in; 502, 503 and 504 say that the server is away.
    REFUSALS = (400, 413, 422, 500)
    RETRIES = 5  # with growing waits, of half a second up to eight

    def __init__(self, url: str, model: str | None) -> None:
        try:
            import openai
        except ImportError as error:
            raise DarlingError(f"openai, for {spelled('url')}", f"{error}", "pip install openai") from error
        self._failure, self._status_error = openai.OpenAIError, openai.APIStatusError
        url = url.rstrip("/")
        url = url if url.endswith("/v1") else f"{url}/v1"
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=self.RETRIES)
        served = self._served(url, model)
        if model is None and len(served) != 1:
            raise DarlingError(f"one model at {url}, or {spelled('model_name')}", f"{list(served)}", "name one")
        self.model = model or next(iter(served))
        self.source = served.get(self.model) or url

    def close(self) -> None:
        self._client.close()

    def _served(self, url: str, model: str | None) -> dict[str, str | None]:
        """By name, where each of the server's models is from."""
        try:
            return {each.id: getattr(each, "root", None) for each in self._client.models.list().data}
        except self._failure as error:
            if model is not None and isinstance(error, self._status_error):  # some servers have no such list
                return {}
            action = (
                "correct the URL, or name one" if model is None else "look at the server; the same command goes on"
            )
            raise DarlingError(f"the models of {url}", f"{error}", action) from error

    def __call__(self, prompts: Sequence[dict[str, Any]], settings: Settings) -> Iterator[list[str] | Refused]:
        """In the order of the prompts. Refused are also those that the server has an error of its own for, each time.

        Raises DarlingError where it cannot be reached, or lets nobody in; one that this befalls while others are
        answered counts as refused.
        """
        from concurrent.futures import ThreadPoolExecutor

        def ask(prompt: dict[str, Any]) -> list[str]:
            texts: list[str] = []
            while len(texts) < settings.n:  # servers may give fewer than asked for at once
                reply = self._client.chat.completions.create(
                    model=self.model,
                    messages=_messages(prompt),
                    n=settings.n - len(texts),
                    temperature=settings.temperature,
                    top_p=1.0,  # a server may have another by default
                    max_tokens=settings.max_tokens,
                    seed=seed_of(prompt, settings) + len(texts),
                )
                if not reply.choices:
                    raise NoAnswer("an answer without any choices")
                texts += [choice.message.content or "" for choice in reply.choices]
            return texts[: settings.n]

        def ask_or_not(prompt: dict[str, Any]) -> list[str] | Refused | Exception:
            try:
                return ask(prompt)
            except NoAnswer as error:
                return Refused(f"{error}")
            except self._failure as error:
                status = error.status_code if isinstance(error, self._status_error) else None
                return Refused(f"{error}") if status in self.REFUSALS else error

        held: list[list[str] | Refused | Exception] = []  # until one is answered
        with ThreadPoolExecutor(self.CONCURRENCY) as threads:
            answered = False
            for found in threads.map(ask_or_not, prompts):
                held.append(found)
                answered = answered or isinstance(found, list)
                if answered:
                    yield from (Refused(f"{each}") if isinstance(each, Exception) else each for each in held)
                    held.clear()
        failures = [each for each in held if isinstance(each, Exception)]
        if failures:
            raise DarlingError(
                f"samples from {self.model}", f"{failures[0]}", "look at the server; the same command goes on"
            ) from failures[0]
        yield from held
