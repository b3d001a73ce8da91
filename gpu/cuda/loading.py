"""The way of a checkpoint from its files to the device: read into a ring of pinned memory, laid out by kernels."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from gpu.checkpoint.index import Checkpoint
from gpu.checkpoint.safetensors import ITEM_BYTES, TensorEntry
from gpu.cuda.arena import Arena
from gpu.cuda.device import Device, Event
from gpu.cuda.weights import Place

_SLOTS, _SLOT = 8, 4 << 20  # all that loading takes of the host, however large a tensor is
_READERS = 4  # threads: one alone does not keep a fast disk busy
_TYPES = {"F32": 0, "F16": 1, "BF16": 2}  # as in loading.cu
_THREADS, _BLOCKS = 256, 8  # of a block, of a processor


class _Piece(NamedTuple):
    """Some bytes of a tensor."""

    name: str
    entry: TensorEntry
    start: int
    size: int


def load(
    device: Device, checkpoint: Checkpoint, arena: Arena, places: Mapping[str, Place], *,
    wait: Callable[[Event], None], slot_size: int = _SLOT,
) -> None:  # fmt: skip
    """Load all tensors of a checkpoint, and wait until they are there.

    Parameters
    ----------
    device : Device
        Its kernels are built.
    checkpoint : Checkpoint
        Its files are read in their own order, and the progress is reported to it.
    arena : Arena
        Where the tensors go; all zero, for nothing is written to what pads a matrix.
    places : mapping of str to Place
        Where in the arena, for every tensor.
    wait : callable
        Waits for an event of the device.
    slot_size : int
        Bytes that are read at once, of which eight times as many are pinned; a multiple of 4.

    Raises
    ------
    CheckpointError
        If a file cannot be read to its end.
    """
    address, ring = device.pinned(_SLOTS * slot_size)
    reading: deque[tuple[int, _Piece, Future[None]]] = deque()
    events: list[Event | None] = [None] * _SLOTS

    def send() -> None:
        slot, piece, read = reading.popleft()
        read.result()
        _lay_out(device, piece, address + slot * slot_size, arena, places[piece.name])
        events[slot] = device.record()
        checkpoint.advance(piece.size)

    with ThreadPoolExecutor(_READERS) as readers:  # nobody writes to the ring any more when this is left
        for number, piece in enumerate(_pieces(checkpoint, slot_size)):
            slot = number % _SLOTS
            if (event := events[slot]) is not None:
                wait(event)
            target = ring[slot * slot_size :][: piece.size]
            reading.append((slot, piece, readers.submit(piece.entry.read_bytes, piece.start, target)))
            if len(reading) > _READERS:
                send()
        while reading:
            send()
    wait(device.record())
    device.release(address)


def _pieces(checkpoint: Checkpoint, most: int) -> Iterator[_Piece]:
    """Cut the tensors into pieces of at most so many bytes, in the order in which they lie in their files."""
    for name, entry in sorted(checkpoint.entries.items(), key=lambda item: (item[1].path, item[1].start)):
        for start in range(0, entry.size, most):
            yield _Piece(name, entry, start, min(most, entry.size - start))


def _lay_out(device: Device, piece: _Piece, address: int, arena: Arena, place: Place) -> None:
    entry, item = piece.entry, ITEM_BYTES[piece.entry.dtype]
    kernel, columns = ("load_vector", 1) if len(entry.shape) == 1 else ("load_matrix", entry.shape[1])
    row, column = divmod(piece.start // item, columns)
    count = piece.size // item
    blocks = min(-(-count // _THREADS), _BLOCKS * device.processors)
    device.launch(
        kernel, (blocks, 1, 1), _THREADS, address, _TYPES[entry.dtype], count, row, column, columns, place.first,
        place.step, place.half, arena.at(place.array),
    )  # fmt: skip
