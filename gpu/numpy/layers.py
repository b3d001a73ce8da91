"""The operations of a transformer layer, in NumPy, each into memory that it is given."""

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

# OpenBLAS splits a matrix-vector product over its threads from 9,216 elements on, which costs more than it gains
# here and stalls when another process wants a core. Attention's products over the cache stay below.
ONE_THREAD_ELEMENTS = 8192


def rms_norm(x: Float32Array, out: Float32Array, norms: Float32Array, *, eps: float) -> None:
    """Divide each vector by its root mean square (Zhang and Sennrich 2019, eq. 4), without the weight.

    Parameters
    ----------
    x, out : ndarray, [..., features] float32
        May be the same memory.
    norms : ndarray, [..., 1] float32
        Scratch.
    eps : float
        Added to the mean of squares.
    """
    np.vecdot(x, x, out=norms[..., 0])
    norms /= x.shape[-1]
    norms += eps
    np.sqrt(norms, out=norms)
    np.divide(x, norms, out=out)


def rotate(heads: Float32Array, cosine: Float32Array, sine: Float32Array, swapped: Float32Array) -> None:
    """Turn each head by its position, in place; the table is that of `RopeConfig.table`.

    Parameters
    ----------
    heads : ndarray, [tokens, heads, head_dim] float32
    cosine, sine : ndarray, [tokens, 1, head_dim] float32
    swapped : ndarray, [tokens, heads, head_dim] float32
        Scratch.
    """
    tokens, count, head_dim = heads.shape
    halves = (tokens, count, 2, head_dim // 2)
    swapped.reshape(halves)[...] = heads.reshape(halves)[:, :, ::-1]
    swapped *= sine
    heads *= cosine
    heads += swapped


def swiglu(gate: Float32Array, up: Float32Array, sigmoid: Float32Array) -> None:
    """Replace gate by silu(gate) * up (Shazeer 2020, "GLU variants improve transformer").

    Parameters
    ----------
    gate, up, sigmoid : ndarray, [tokens, intermediate] float32
        `sigmoid` is scratch.
    """
    np.negative(gate, out=sigmoid)
    np.exp(sigmoid, out=sigmoid)  # overflows to inf for gate < -88, and gate / inf is the right 0
    sigmoid += 1
    gate /= sigmoid
    gate *= up


class Attention:
    """Softmax attention over a linear cache; holds the scratch that grows with the context."""

    def __init__(self, *, heads: int, kv_heads: int, head_dim: int, capacity: int, chunk: int) -> None:
        self._kv_heads, self._group, self._head_dim = kv_heads, heads // kv_heads, head_dim
        self._block = max(1, ONE_THREAD_ELEMENTS // head_dim)
        blocks = capacity // self._block
        self._scores = np.empty(heads * capacity, np.float32)
        self._partial = np.empty(heads * blocks * head_dim, np.float32)
        self._tail = np.empty((kv_heads, self._group, head_dim), np.float32)
        self._peak = np.empty((kv_heads, self._group, 1), np.float32)
        self._total = np.empty((kv_heads, self._group, 1), np.float32)
        self._chunk_scores = np.empty(self._group * chunk * capacity, np.float32)
        self._chunk_queries = np.empty(self._group * chunk * head_dim, np.float32)
        self._chunk_out = np.empty(self._group * chunk * head_dim, np.float32)
        self._causal = np.triu(np.full((chunk, chunk), -np.inf, np.float32), 1)

    def attend_one(self, query: Float32Array, keys: Float32Array, values: Float32Array, out: Float32Array) -> None:
        """Attend with one token to all that is given.

        The products go block by block over the positions, so that no BLAS splits them over threads.

        Parameters
        ----------
        query, out : ndarray, [heads, head_dim] float32
            The query is scaled already.
        keys, values : ndarray, [kv_heads, length, head_dim] float32
        """
        kv_heads, group, head_dim, block = self._kv_heads, self._group, self._head_dim, self._block
        length = keys.shape[1]
        blocks = length // block
        split = blocks * block
        query, out = query.reshape(kv_heads, group, head_dim), out.reshape(kv_heads, group, head_dim)
        scores = self._scores[: kv_heads * group * length].reshape(kv_heads, group, length)
        in_blocks = scores[:, :, :split].reshape(kv_heads, group, blocks, block)
        blocked = (kv_heads, 1, blocks, block, head_dim)

        if blocks:
            np.matvec(keys[:, :split].reshape(blocked), query[:, :, None], out=in_blocks)
        if split < length:
            np.matvec(keys[:, None, split:], query, out=scores[:, :, split:])

        np.maximum.reduce(scores, axis=2, keepdims=True, out=self._peak)
        scores -= self._peak
        np.exp(scores, out=scores)
        np.add.reduce(scores, axis=2, keepdims=True, out=self._total)

        if blocks:
            partial = self._partial[: kv_heads * group * blocks * head_dim].reshape(kv_heads, group, blocks, head_dim)
            np.vecmat(in_blocks, values[:, :split].reshape(blocked), out=partial)
            np.add.reduce(partial, axis=2, out=out)
        if split < length:
            tail = self._tail if blocks else out
            np.vecmat(scores[:, :, split:], values[:, None, split:], out=tail)
            if blocks:
                out += tail
        out /= self._total

    def attend_chunk(self, queries: Float32Array, keys: Float32Array, values: Float32Array, out: Float32Array) -> None:
        """Attend with a chunk of tokens, the last ones of those given, each to itself and all before it.

        Parameters
        ----------
        queries, out : ndarray, [tokens, heads, head_dim] float32
            The queries are scaled already.
        keys, values : ndarray, [kv_heads, length, head_dim] float32
        """
        tokens, group, head_dim, length = len(queries), self._group, self._head_dim, keys.shape[1]
        query = self._chunk_queries[: group * tokens * head_dim].reshape(group, tokens, head_dim)
        result = self._chunk_out[: group * tokens * head_dim].reshape(group, tokens, head_dim)
        scores = self._chunk_scores[: group * tokens * length].reshape(group, tokens, length)
        flat = scores.reshape(group * tokens, length)
        for kv_head in range(self._kv_heads):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            query[...] = queries[:, heads].transpose(1, 0, 2)
            np.matmul(query.reshape(group * tokens, head_dim), keys[kv_head].T, out=flat)
            scores[:, :, length - tokens :] += self._causal[:tokens, :tokens]
            flat -= flat.max(axis=1, keepdims=True)
            np.exp(flat, out=flat)
            flat /= flat.sum(axis=1, keepdims=True)
            np.matmul(flat, values[kv_head], out=result.reshape(group * tokens, head_dim))
            out[:, heads] = result.transpose(1, 0, 2)
