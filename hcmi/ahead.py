"""Work ahead of the one who needs it: decoding in threads, and copies to a GPU on a stream of their own."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:           # who reads files ahead starts without torch
    import torch
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int, threads: int = 1) -> Iterator[Result]:
    """`function(item)` of each item, in order. `depth` items beyond the one that is asked for are in work or done.

    The items are taken in the caller's thread. What `function` raises is raised in its place.
    """
    with ThreadPoolExecutor(threads, "ahead") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                del item        # it may be large
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def on_device(batches: "Iterable[tuple[Any, Tensor, Tensor]]", device: "torch.device"
              ) -> "Iterator[tuple[Any, Tensor, Tensor]]":
    """Each batch, which is anything and two tensors, with its tensors on the device.

    For a GPU the next batch is copied while this one is used: a thread moves it to pinned memory, and the copy has a
    stream of its own. On a CPU the batches are as they were given, when they are asked for.
    """
    if device.type != "cuda":
        yield from batches
        return
    import torch

    stream = torch.cuda.Stream(device)

    def copied(batch: "tuple[Any, Tensor, Tensor]") -> "tuple[Any, list[Tensor], torch.cuda.Event]":
        name, *tensors = batch
        with torch.cuda.stream(stream):
            there = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
            return name, there, stream.record_event()

    for name, there, event in ahead(copied, batches, depth=1):
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for tensor in there:
            tensor.record_stream(current)       # its memory is not used again before that stream is done with it
        one, other = there
        del there, tensor
        yield name, one, other
        del one, other
