"""The way of a checkpoint from its files to the device: read into a ring of pinned memory, laid out by kernels."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from gpu.checkpoint.index import Checkpoint
from gpu.checkpoint.safetensors import ITEM_BYTES, TensorEntry
from gpu.cuda.arena import Arena
from gpu.cuda.device import Device, Event, Lines
from gpu.cuda.tiles import up
from gpu.cuda.weights import Place

_SLOTS, _SLOT = 8, 4 << 20  # all that loading takes of the host, however large a tensor is
_READERS = 4  # threads: one alone does not keep a fast disk busy
_TYPES = {"F32": 0, "F16": 1, "BF16": 2}  # as in loading.cu
_THREADS, _WARPS, _BLOCKS = 256, 8, 8  # of a block, of a block, of a processor


class _Piece(NamedTuple):
    """Some bytes of a tensor."""

    name: str
    entry: TensorEntry
    start: int
    size: int


def load(
    device: Device, checkpoint: Checkpoint, arena: Arena, places: Mapping[str, Place], *,
    wait: Callable[[Event], None], quantize: bool = False, slot_size: int = _SLOT,
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
    quantize : bool
        Whether matrices become codes, each row with a scale: they go to the device as they are first, as their rows are
        looked at twice.
    slot_size : int
        Bytes that are read at once, of which eight times as many are pinned; a multiple of 4. Never less than a row of
        a matrix that becomes codes.

    Raises
    ------
    CheckpointError
        If a file cannot be read to its end.
    """
    if quantize:
        slot_size = max([slot_size, *(up(_row_size(entry), 4) for entry in checkpoint.entries.values())])
    apart = device.allocate(slot_size) if quantize else 0
    address, ring = device.pinned(_SLOTS * slot_size)
    reading: deque[tuple[int, _Piece, Future[None]]] = deque()
    events: list[Event | None] = [None] * _SLOTS

    def send() -> None:
        slot, piece, read = reading.popleft()
        read.result()
        numbers, place = address + slot * slot_size, places[piece.name]
        if quantize and _is_matrix(piece.entry):
            device.copy(Lines(numbers, piece.size), Lines(apart, piece.size))
            _lay_out_codes(device, piece, apart, arena, place)
        else:
            _lay_out(device, piece, numbers, arena, place)
        events[slot] = device.record()
        checkpoint.advance(piece.size)

    with ThreadPoolExecutor(_READERS) as readers:  # nobody writes to the ring any more when this is left
        for number, piece in enumerate(_pieces(checkpoint, slot_size, whole_rows=quantize)):
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
    if quantize:
        device.release(apart)


def _is_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2


def _row_size(entry: TensorEntry) -> int:
    """Count the bytes of a row of a matrix, or of a number of a vector."""
    return ITEM_BYTES[entry.dtype] * (entry.shape[1] if _is_matrix(entry) else 1)


def _pieces(checkpoint: Checkpoint, most: int, *, whole_rows: bool) -> Iterator[_Piece]:
    """Cut the tensors into pieces of at most so many bytes, in the order in which they lie in their files."""
    for name, entry in sorted(checkpoint.entries.items(), key=lambda item: (item[1].path, item[1].start)):
        size = most // _row_size(entry) * _row_size(entry) if whole_rows else most
        for start in range(0, entry.size, size):
            yield _Piece(name, entry, start, min(size, entry.size - start))


def _lay_out_codes(device: Device, piece: _Piece, address: int, arena: Arena, place: Place) -> None:
    entry, columns = piece.entry, piece.entry.shape[1]
    row, count = piece.start // _row_size(entry), piece.size // ITEM_BYTES[entry.dtype]
    blocks = min(-(-count // columns // _WARPS), _BLOCKS * device.processors)
    device.launch(
        "load_codes", (blocks, 1, 1), _THREADS, address, _TYPES[entry.dtype], count, row, columns, place.first,
        place.step, place.half, arena.at(place.array), arena.at(f"{place.array}_scale"),
    )  # fmt: skip


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
