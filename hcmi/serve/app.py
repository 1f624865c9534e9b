"""The server of the search page: the page itself, a small JSON interface, and the videos.

    GET /api/search?q=TEXT | ?like=VIDEO_ID   [&top= &tag=NAME=VALUE &min_seconds= &max_seconds=]
    GET /api/explain?q=TEXT&video_id=ID       [the same filters]
    GET /api/about
    GET /video/ID                             the file, in ranges
    GET /frame/ID?start_s=&end_s=             the middle frame of a moment as JPEG, for files that a browser cannot play

Errors are `{"error": one line}`: 400 for a wrong query, 404 for an unknown video, 503 when Milvus does not answer or
the machine lacks something. A retrained model and its index replace the loaded ones between two
requests (`hcmi/serve/following.py`).
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hcmi.errors import ConfigError, DataError, HcmiError, MachineError, SearchIndexError, file_of, machine_error, shown
from hcmi.index import MilvusIndex, SearchIndex
from hcmi.search import Retriever, check_number, check_query, hit_record, parse_tags, span_text, time_text
from hcmi.serve.following import FollowingRetriever
from hcmi.types import Hit
from hcmi.video import EncodeJob, check_file, encode_job, run_one
from hcmi.wording import plural

STATIC = Path(__file__).with_name("static")
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
EXAMPLES, EXAMPLE_CHARS = 3, 200        # captions of the index that the empty page suggests, and their greatest length
FRAME_PIXELS, FRAME_QUALITY, FRAME_TIMEOUT_S = 320, 85, 20.0
HEADERS = {"content-security-policy": "default-src 'self'; frame-ancestors 'none'", "x-content-type-options": "nosniff",
           "referrer-policy": "no-referrer"}


def make_app(retriever: Retriever, hosts: tuple[str, ...] = LOOPBACK,
             say: Callable[[str], None] = lambda line: None) -> Starlette:
    """The page over one retriever, and over the models and indexes that later replace those in its folders.

    `say` is called with a line about each replacement. Requests for names other than `hosts` are refused; otherwise a
    web site could point its own name at this machine and read the page of its visitor (DNS rebinding).
    """
    page = Page(FollowingRetriever(retriever, say))
    routes = [Route("/api/about", page.about), Route("/api/search", page.search), Route("/api/explain", page.explain),
              Route("/video/{video_id}", page.video), Route("/frame/{video_id}", page.frame),
              Mount("/", StaticFiles(directory=STATIC, html=True))]
    return Starlette(routes=routes, exception_handlers={HcmiError: _explained, OSError: _refused},
                     middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(_Headers)])


class Page:
    """The answers of all addresses. Each request is answered from one retriever.

    Searches run one after the other; files are served at the same time.
    """

    def __init__(self, following: FollowingRetriever):
        self._following = following
        self._searching, self._decoding = asyncio.Lock(), asyncio.Lock()

    async def about(self, request: Request) -> Response:
        return JSONResponse(await self._search(self._about))

    async def search(self, request: Request) -> Response:
        started = time.perf_counter()
        hits, notes = await self._search(self._answer, request.query_params)
        here = await run_in_threadpool(lambda: [os.path.isfile(hit.path) for hit in hits])
        return JSONResponse({"hits": [_card(hit, found) for hit, found in zip(hits, here, strict=True)],
                             "notes": notes,
                             "seconds": round(time.perf_counter() - started, 4)})

    async def explain(self, request: Request) -> Response:
        return JSONResponse(await self._search(self._explanation, request.query_params))

    async def video(self, request: Request) -> Response:
        return FileResponse(await run_in_threadpool(self._path, request.path_params["video_id"]))

    async def frame(self, request: Request) -> Response:
        start_s, end_s = (check_number(request.query_params.get(name), name) for name in ("start_s", "end_s"))
        path = await run_in_threadpool(self._path, request.path_params["video_id"])
        async with self._decoding:
            jpeg = await run_in_threadpool(read_frame, path, start_s or 0.0, end_s)
        return Response(jpeg, media_type="image/jpeg")

    async def _search(self, function: Callable, *arguments: Any) -> Any:
        async with self._searching:
            return await run_in_threadpool(lambda: function(self._following.current(), *arguments))

    def _about(self, retriever: Retriever) -> dict[str, Any]:
        index = retriever.index
        rows = index.some_rows(EXAMPLES)
        clips = index.clips(rows) if len(rows) else []
        shortest = [min(clip.captions, key=len) for clip in clips if clip.captions]
        examples = [caption for caption in shortest if len(caption) <= EXAMPLE_CHARS]
        return {"videos": len(index), "holds": _held(index), "examples": examples, "notes": retriever.notes,
                "level_weights": retriever.model.level_weights}

    def _answer(self, retriever: Retriever, query: QueryParams) -> tuple[list[Hit], list[str]]:
        hits = self._hits(retriever, query)
        tag_notes = [] if hits else retriever.tag_notes(parse_tags(query.getlist("tag")))
        return hits, [*retriever.query_notes(query.get("q", "")), *tag_notes]

    def _hits(self, retriever: Retriever, query: QueryParams) -> list[Hit]:
        filters = (_whole(query, "top", 10), parse_tags(query.getlist("tag")),
                   check_number(query.get("min_seconds"), "min_seconds"),
                   check_number(query.get("max_seconds"), "max_seconds"))
        if "like" in query:
            return retriever.similar(query["like"], *filters)
        return retriever.search(check_query(query.get("q", "")), *filters)

    def _explanation(self, retriever: Retriever, query: QueryParams) -> dict[str, Any]:
        """The explanation of one of the answers to the same query and filters, with the texts of its times."""
        wanted = query.get("video_id", "")
        found = [hit for hit in self._hits(retriever, query) if hit.video_id == wanted]
        if "q" not in query or not found:
            raise DataError(f"video {wanted!r}: need one of the answers to a query, got another. Search again.")
        record = retriever.explain(query["q"], found[0]).record()
        phrases = [{**phrase, "time": time_text(phrase["time_s"])} for phrase in record["phrases"]]
        return {**record, "phrases": phrases, "times": list(map(time_text, record["times_s"]))}

    def _path(self, video_id: str) -> str:
        """The file of an indexed video. No path comes from the request, so only indexed files are served."""
        retriever = self._following.current()
        rows = retriever.index.rows_of("video_id", [video_id])
        if not len(rows):
            raise DataError(f"video {video_id!r}: need the video_id of an indexed video, got another. Search again.")
        path = retriever.file_of(retriever.index.clips(rows[:1])[0].path)
        if not os.path.isfile(path):
            raise DataError(f"{path}: need the video, got no such file. Put it back, or export again without it.")
        check_file(path)
        return path


def _card(hit: Hit, here: bool) -> dict[str, Any]:
    """What the page shows of an answer. `here`: whether its file is there; `time`: seconds as a player shows them."""
    record = hit_record(hit)
    for moment in (record, *record["more"]):
        moment["time"] = span_text(moment["start_s"], moment["end_s"])
    return {**record, "file": shown(Path(hit.path).name), "here": here}


def _held(index: SearchIndex | MilvusIndex) -> str:
    """`66 videos`, or `2 videos in 3,604 parts` where films are divided."""
    files, rows = index.num_files(), len(index)
    return plural(files, "video") + f" in {rows:,} parts" * (rows != files)


def read_frame(path: str, start_s: float, end_s: float | None) -> bytes:
    """The middle frame between two times in seconds (None: the end), as a square JPEG.

    Raises: DecodeError when the file cannot be decoded.
    """
    job = EncodeJob(None, path, 1, FRAME_PIXELS, start_s, end_s, quality=FRAME_QUALITY)
    return run_one(job, FRAME_TIMEOUT_S, encode_job).frames[0]


def serve(retriever: Retriever, host: str, port: int, say: Callable[[str], None], hosts: Sequence[str] = ()) -> None:
    """Serve the page until Ctrl-C. `port` 0 takes a free one. `say` is called with the address once it can be opened.

    `hosts`: further names by which the page may be asked for, such as that of a proxy in front of it.

    Raises: ConfigError when the address cannot be used.
    """
    for name in hosts:
        if name != "*" and "*" in name.removeprefix("*."):
            raise ConfigError(f"--allow-host: need a name, or *.NAME for all below it, got {shown(name)!r}. Correct "
                              "it.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"host {host}, port {port}: need an address this machine can listen on, got: "
                          f"{getattr(error, 'strerror', None) or error}. Choose another port.") from error
    names = (*LOOPBACK, *hosts) if host in LOOPBACK else tuple(hosts) or ("*",)
    if host not in LOOPBACK:
        say(f"note: host {host}: everyone who can reach this machine can watch the indexed videos.")
    shown_host = f"[{host}]" if ":" in host else host
    say(f"http://{shown_host}:{listener.getsockname()[1]} searches {_held(retriever.index)}. Ctrl-C stops.")
    config = uvicorn.Config(make_app(retriever, names, say), log_level="warning", access_log=False)
    with listener, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


async def _explained(request: Request, error: Exception) -> Response:
    lacking = isinstance(error, (SearchIndexError, MachineError))
    status = 400 if isinstance(error, ConfigError) else 503 if lacking else 404
    return JSONResponse({"error": str(error)}, status)


async def _refused(request: Request, error: Exception) -> Response:
    """For an error of the operating system while the index is read."""
    assert isinstance(error, OSError)
    return JSONResponse({"error": str(machine_error(file_of(error) or "search", "to read it", error))}, 503)


class _Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self.app(scope, receive, with_headers)


def _whole(query: QueryParams, name: str, default: int) -> int:
    """The value, or `default` when it is not given. Raises: ConfigError when it is not a whole number."""
    value = check_number(query.get(name), name)
    if value is not None and value != int(value):
        raise ConfigError(f"{name}: need a whole number, got {query[name]!r}. Correct it or leave it out.")
    return default if value is None else int(value)
