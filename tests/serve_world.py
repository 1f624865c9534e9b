"""A page that is really served, and a model with the export that it makes, to be replaced while it is."""

import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import uvicorn
from search_world import clips, searchable_model, times, video_tokens
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from hcmi.index import TokenWriter, create_index, model_card, videos_table
from hcmi.search import Retriever
from hcmi.serve.app import make_app


@contextmanager
def served(retriever: Retriever, **options) -> Iterator[str]:
    """The address of the page over this retriever."""
    with running(make_app(retriever, **options)) as address:
        yield address


def proxy(address: str, prefix: str) -> Starlette:
    """A reverse proxy that shows the server of `address` below `prefix`, and passes on the name it was asked for."""
    client = httpx.AsyncClient(base_url=address, timeout=60)

    async def forward(request: Request) -> StreamingResponse:
        url = httpx.URL(path=f"/{request.path_params['path']}", query=request.url.query.encode())
        answer = await client.send(client.build_request(request.method, url, headers=request.headers.raw), stream=True)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, dict(answer.headers),
                                 background=BackgroundTask(answer.aclose))

    return Starlette(routes=[Route(f"{prefix}/{{path:path}}", forward)])


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """The address of a server of this application."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def write_pair(folder: Path, seed: int, num_videos: int, video: Path) -> None:
    """models/hcmi and export/ as the stages write them; every clip has a copy of the file `video`."""
    model = searchable_model(seed)
    model.save_pretrained(folder / "models/hcmi")
    writer = TokenWriter(folder / "export/embeddings", num_videos)
    writer.append(video_tokens(num_videos, np.random.default_rng(seed)), times(num_videos))
    writer.close()
    made = []
    for number in range(num_videos):
        copy = video.with_name(f"{video.stem}_{number}{video.suffix}")
        if not copy.exists():
            os.link(video, copy)
        made += clips([f"v{number}"], path=str(copy))
    pq.write_table(videos_table(made), folder / "export/videos.parquet")
    create_index(folder / "export/index", model_card(model), data="..")


class Asking:
    """One thread for each name, which calls `_ask(name)` while the block runs; `changed` says that an answer came."""

    def __init__(self, names: Iterable):
        self.changed, self.stopped = threading.Condition(), False
        self.threads = [threading.Thread(target=self._ask, args=(name,)) for name in names]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped = True
        for thread in self.threads:
            thread.join()
