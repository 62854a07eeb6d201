"""From packed bytes to int8 levels (the layout: `ops/device_layout.py`).

Two ways that give the same levels: plain Triton, which the interpreter can run, and inline PTX,
which takes 0.5 to 1.5 instructions per weight instead of 6.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def plane_assembly(bits, plane, tables):
    """PTX that looks up the four codes of one plane of a word.

    Args:
        tables: 16 levels as four 32-bit words, the first level in the lowest byte.
    """
    shift = 16 * (plane & 1) + bits * (plane >> 1)
    moved = f"shr.b32 s, $1, {shift}; " if shift else "mov.b32 s, $1; "
    table = [f"0x{word & 0xFFFFFFFF:08x}" for word in tables]
    declared = "{ .reg .b32 s, t, u, v, a, b; "
    if bits < 4:
        mask = 0x1111 * ((1 << bits) - 1)
        look_up = f"and.b32 s, s, {mask}; mov.b32 a, {table[0]}; prmt.b32 $0, a, a, s; "
        return declared + moved + look_up + "}"
    # Eight levels at a time, then each byte is taken from the half that bit 3 of its code names.
    look_up = f"and.b32 t, s, 0x7777; mov.b32 a, {table[0]}; mov.b32 b, {table[1]}; "
    look_up += f"prmt.b32 u, a, b, t; mov.b32 a, {table[2]}; mov.b32 b, {table[3]}; "
    look_up += "prmt.b32 v, a, b, t; shr.b32 s, s, 1; and.b32 s, s, 0x4444; or.b32 s, s, 0x3210; "
    return declared + moved + look_up + "prmt.b32 $0, u, v, s; }"


@triton.jit
def load_block(words_ptr, row, block, ROW_BYTES: tl.constexpr, TILE: tl.constexpr,
               BITS: tl.constexpr, PLAIN: tl.constexpr):  # fmt: skip
    """One block of rows, (rows, TILE): bytes, for the plain way the word that each is in."""
    position = tl.arange(0, TILE)
    if BITS == 8:
        # Loaded as what the dot reads, so the tensor cores take it from shared memory.
        level_ptr = words_ptr.to(tl.pointer_type(tl.int8), bitcast=True)
        at = row[:, None] * ROW_BYTES + block * TILE + position[None, :]
        return tl.load(level_ptr + at)
    elif PLAIN:  # noqa: RET505 - only branches of a constant are left out of the program
        word_ptr = words_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        at = row[:, None] * (ROW_BYTES // 4) + block * (TILE // 4) + (position // 4)[None, :]
        return tl.load(word_ptr + at)
    else:
        at = row[:, None] * ROW_BYTES + block * TILE + position[None, :]
        return tl.load(words_ptr + at)


@triton.jit
def decode_plane(loaded, levels_ptr, TILE: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr,
                 PLAIN: tl.constexpr, TABLES: tl.constexpr):  # fmt: skip
    """Levels of one plane of what `load_block` gave: (rows, TILE) int8."""
    if BITS == 8:
        return loaded
    elif PLAIN:  # noqa: RET505
        position = tl.arange(0, TILE) % 4
        shift = 4 * position + 16 * (PLANE & 1) + BITS * (PLANE >> 1)
        code = (loaded >> shift[None, :]) & ((1 << BITS) - 1)
        return tl.load(levels_ptr + code)
    else:
        return tl.inline_asm_elementwise(
            asm=plane_assembly(BITS, PLANE, TABLES),
            constraints="=r,r",
            args=[loaded],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )


@triton.jit
def decode_columns(words_ptr, levels_ptr, row, column, is_column, ROW_BYTES: tl.constexpr,
                   TILE: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    """Levels of some columns of one row of a weight with one group: int8, zero outside."""
    if BITS == 8:
        level_ptr = words_ptr.to(tl.pointer_type(tl.int8), bitcast=True)
        return tl.load(level_ptr + row * ROW_BYTES + column, mask=is_column, other=0)
    else:  # noqa: RET505
        word_ptr = words_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        block = column // (8 // BITS * TILE)
        plane = column // TILE % (8 // BITS)
        position = column % TILE
        at = row * (ROW_BYTES // 4) + block * (TILE // 4) + position // 4
        word = tl.load(word_ptr + at, mask=is_column, other=0)
        shift = 4 * (position % 4) + 16 * (plane & 1) + BITS * (plane >> 1)
        code = (word >> shift) & ((1 << BITS) - 1)
        return tl.load(levels_ptr + code, mask=is_column, other=0)
