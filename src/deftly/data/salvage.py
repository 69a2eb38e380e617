"""A parquet file that lost its end: the writer died, or a copy stopped. Its rows are there, its table of contents is not.

Pages are read one after the other, each by its own header, and counted off against the columns of a file of the same kind, whose table of
contents serves as the pattern for a new one. What comes out is the longest beginning of whole row groups that pyarrow decodes; which rows
those are is for the caller to see by their keys.
"""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deftly.data import thrift
from deftly.data.files import PARQUET
from deftly.data.thrift import I64, LIST, STRUCT, Reader, Struct

MAGIC = b"PAR1"
MAX_BYTES = 4 << 30
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
# Field numbers of parquet's structures, from its thrift definition.
HEADER_TYPE, HEADER_UNPACKED, HEADER_PACKED, HEADER_DATA, HEADER_DATA_V2 = 1, 2, 3, 5, 8
FILE_ROWS, FILE_GROUPS = 3, 4
GROUP_COLUMNS, GROUP_BYTES, GROUP_ROWS, GROUP_OFFSET, GROUP_PACKED = 1, 2, 3, 5, 6
CHUNK_OFFSET, CHUNK_META = 2, 3
META_VALUES, META_UNPACKED, META_PACKED, META_DATA, META_DICTIONARY = 5, 6, 7, 9, 11
META_KEPT = (1, 2, 3, 4)  # type, encodings, path, codec


@dataclass(frozen=True, slots=True)
class Page:
    """One page: where it begins and ends, its header included."""

    kind: int
    begin: int
    end: int
    values: int
    unpacked: int


def salvage(path: Path, pattern: Struct | None) -> pa.Table | None:
    """The rows at the beginning of a file without its end; None when there are none, or when `pattern` does not fit."""
    if pattern is None or not pattern[FILE_GROUPS][1][1] or path.stat().st_size > MAX_BYTES:
        return None
    content = path.read_bytes()
    if content[:4] != MAGIC:
        return None
    groups = _groups(_pages(content), pattern[FILE_GROUPS][1][1][0])
    tables = []
    for group in groups:
        footer = copy.deepcopy(pattern)
        footer[FILE_GROUPS] = LIST, (STRUCT, [group])
        footer[FILE_ROWS] = I64, group[GROUP_ROWS][1]
        encoded = thrift.write(footer)
        whole = content + encoded + len(encoded).to_bytes(4, "little") + MAGIC
        try:
            tables.append(pq.ParquetFile(pa.BufferReader(whole)).read())
        except (pa.ArrowException, OSError):
            break
    return pa.concat_tables(tables) if tables else None


def pattern_of(path: Path) -> Struct | None:
    """The table of contents of a whole file; None where it has none."""
    with open(path, "rb") as file:
        file.seek(0, io.SEEK_END)
        size = file.tell()
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != MAGIC or length > size - 12:
            return None
        file.seek(size - 8 - length)
        return Reader(file.read(length)).structure()


def pattern_for(schema: pa.Schema) -> Struct:
    """The table of contents that our writer gives to one row: where no whole file of the kind is left."""
    buffer = io.BytesIO()
    pq.write_table(pa.table([pa.array([_example(item.type)], item.type) for item in schema], schema=schema), buffer, **PARQUET)
    content = buffer.getvalue()
    length = int.from_bytes(content[-8:-4], "little")
    return Reader(content[-8 - length : -8]).structure()


def _example(kind: pa.DataType) -> Any:
    """Some value of a type."""
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _example(kind.field(i).type) for i in range(kind.num_fields)}
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return [_example(kind.value_type)] * (kind.list_size if pa.types.is_fixed_size_list(kind) else 1)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ""
    return b"" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else False if pa.types.is_boolean(kind) else 0


def _pages(content: bytes) -> list[Page]:
    """The whole pages from the beginning on."""
    pages, place, view = [], 4, memoryview(content)
    while True:
        reader = Reader(view, place)
        try:
            header = reader.structure()
            kind, unpacked, packed = (int(header[field][1]) for field in (HEADER_TYPE, HEADER_UNPACKED, HEADER_PACKED))
            detail = header.get(HEADER_DATA) or header.get(HEADER_DATA_V2)
            values = int(detail[1][1][1]) if detail else 0
        except (ValueError, KeyError, TypeError, IndexError):
            return pages
        end = reader.place + packed
        if packed < 0 or values < 0 or end > len(content):
            return pages
        pages.append(Page(kind, place, end, values, unpacked + reader.place - place))
        place = end


def _groups(pages: list[Page], pattern: Struct) -> list[Struct]:
    """Row groups that the pages are, in the shape of `pattern`; the last, unfinished one is left out."""
    columns = pattern[GROUP_COLUMNS][1][1]
    widths = [column[CHUNK_META][1][META_VALUES][1] / max(1, pattern[GROUP_ROWS][1]) for column in columns]
    groups: list[Struct] = []
    at = 0
    while True:
        rows, chunks = 0, []
        for column, width in zip(columns, widths, strict=True):
            begin = at
            if at < len(pages) and pages[at].kind == DICTIONARY_PAGE:
                at += 1
            first, values = at, 0
            while at < len(pages) and pages[at].kind in (DATA_PAGE, DATA_PAGE_V2):
                values += pages[at].values
                at += 1
                if values >= rows * width if rows else first == begin:  # without a dictionary nothing says where the first column ends
                    break
            rows = rows or round(values / width)
            if first == at or values != rows * width:
                return groups
            chunks.append(_chunk(column, pages[begin:at], first - begin, values))
        groups.append(_group(rows, chunks, pages[at - 1].end))


def _chunk(pattern: Struct, pages: list[Page], dictionaries: int, values: int) -> Struct:
    old = pattern[CHUNK_META][1]
    meta: Struct = {field: old[field] for field in META_KEPT}
    meta[META_VALUES] = I64, values
    meta[META_UNPACKED] = I64, sum(page.unpacked for page in pages)
    meta[META_PACKED] = I64, pages[-1].end - pages[0].begin
    meta[META_DATA] = I64, pages[dictionaries].begin
    if dictionaries:
        meta[META_DICTIONARY] = I64, pages[0].begin
    return {CHUNK_OFFSET: (I64, pages[0].begin), CHUNK_META: (STRUCT, meta)}


def _group(rows: int, chunks: list[Struct], end: int) -> Struct:
    begin = chunks[0][CHUNK_OFFSET][1]
    size = sum(chunk[CHUNK_META][1][META_UNPACKED][1] for chunk in chunks)
    return {
        GROUP_COLUMNS: (LIST, (STRUCT, chunks)),
        GROUP_BYTES: (I64, size),
        GROUP_ROWS: (I64, rows),
        GROUP_OFFSET: (I64, begin),
        GROUP_PACKED: (I64, end - begin),
    }
