"""A kind of damage that HDF5 reads for ever."""

import mmap
import re
import struct
from pathlib import Path

HEAP = re.compile(rb"GCOL\x01\x00\x00\x00(.{8})", re.DOTALL)  # a global heap collection, and its size
OBJECT = struct.Struct("<HHIQ")  # index in the collection, references, reserved, size


def check_heaps(path: Path) -> None:
    """ValueError where HDF5 would go through the texts of a file for ever, which no signal but SIGKILL ends.

    It goes from object to object of a global heap collection by their sizes, and at a free space of size 0 it stays
    where it is (HDF5 2.0.0; HDF5 File Format Specification 3.0, section III.E). Lengths are of eight bytes, as h5py
    writes them.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for heap in HEAP.finditer(content):
            at, end = heap.end(), min(heap.start() + int.from_bytes(heap[1], "little"), len(content))
            while at + OBJECT.size <= end:
                index, _, _, size = OBJECT.unpack_from(content, at)
                step = size if index == 0 else OBJECT.size + -(-size // 8) * 8
                if step == 0:
                    raise ValueError("its global heap is damaged")
                at += step
