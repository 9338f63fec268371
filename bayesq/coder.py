"""Entropy coding of integer symbols under integer probability tables.

What a decoder must know before it can read a symbol is integer here, from end to end: the tables are cumulative counts
out of 2**24, stored with the model, and the range coder (Martin, "Range encoding", 1979; the implementation is
``constriction``, Bamler 2022) sees exactly those counts. A file thus decodes on any machine.

``constriction`` takes floats: to n symbols it gives ``1 + floor(share of 2**24 - n)`` counts, the floor being taken on
cumulative sums. Handing it ``counts - 1``, integers that add up to 2**24 - n, makes the shares integers and the floor
an identity, so that the counts come back unchanged.

The tails of a table, where all counts are 1, are not looked up but coded like what is beyond the table: a few symbols
are found nearly twice as fast as a thousand.

A symbol that can only be 0 has row −1 instead of one of the tables, and takes neither bits nor time.

A stream is a whole number of 32-bit little-endian words: those of the range coder, then a CRC-32 of all symbols but
these.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import erfc, sqrt

import numpy as np
from constriction import stream

from bayesq.errors import BitstreamError, ModelError

PRECISION = 24
TOTAL = 1 << PRECISION
MAX_ROWS = 1 << 16
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class Tables:
    """T probability tables over the symbols −R…R and one escape, which stands for every other integer.

    What is coded with row t are the symbols within ``reach[t]``; the escape stands for all others there.

    Attributes:
        cdf: int32 (T, 2R+3); row t holds 0, then the cumulative counts of −R, …, R, escape, and ends with 2**24.

    Raises:
        ModelError: the counts are not those of T tables in which every symbol has at least one count.
    """

    cdf: np.ndarray
    _models: dict[int, stream.model.Categorical] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        cdf = self.cdf
        if cdf.dtype != np.int32 or cdf.ndim != 2 or cdf.shape[1] < 3 or cdf.shape[1] % 2 == 0:
            raise ModelError(f"probability tables must be int32 (T, 2R+3), not {cdf.dtype} {cdf.shape}")
        if not 1 <= len(cdf) <= MAX_ROWS:
            raise ModelError(f"a model has 1 to {MAX_ROWS} probability tables, not {len(cdf)}")
        if (cdf[:, 0] != 0).any() or (cdf[:, -1] != TOTAL).any() or (cdf[:, 1:] <= cdf[:, :-1]).any():
            raise ModelError(f"probability tables must increase strictly from 0 to {TOTAL}")

    def __reduce__(self) -> tuple[type["Tables"], tuple[np.ndarray]]:
        return Tables, (self.cdf,)  # models can neither be copied nor sent

    @classmethod
    def from_masses(cls, masses: np.ndarray) -> "Tables":
        """Rounds probabilities to counts, each within 1 of its share and at least 1.

        Args:
            masses: float (T, 2R+2), non-negative, in the order −R, …, R, escape; each row is normalised.
        """
        masses = np.asarray(masses, dtype=np.float64)
        if masses.ndim != 2 or not np.isfinite(masses).all() or (masses < 0).any() or (masses.sum(1) <= 0).any():
            raise ModelError("probabilities must be finite, non-negative and not all zero")
        rows, n = masses.shape
        cumulative = np.cumsum(masses, axis=1)
        cdf = np.zeros((rows, n + 1), dtype=np.int32)
        cdf[:, 1:] = np.rint(cumulative / cumulative[:, -1:] * (TOTAL - n)) + np.arange(1, n + 1)
        return cls(cdf)

    @property
    def radius(self) -> int:
        """R, the largest magnitude that the tables tell from others."""
        return (self.cdf.shape[1] - 3) // 2

    @cached_property
    def reach(self) -> np.ndarray:
        """The largest magnitude of more than one count in each row, int32 (T,): all beyond is coded by an escape."""
        likely = np.diff(self.cdf)[:, :-1] > 1
        return np.where(likely, np.abs(np.arange(-self.radius, self.radius + 1)), 0).max(1).astype(np.int32)

    @cached_property
    def _escape_counts(self) -> np.ndarray:
        rows = np.arange(len(self.cdf))
        return TOTAL - (self.cdf[rows, self.radius + self.reach + 1] - self.cdf[rows, self.radius - self.reach])

    @cached_property
    def least_bits(self) -> np.ndarray:
        """What the likeliest symbol of each row costs, float64 (T,)."""
        return PRECISION - np.log2(np.maximum(np.diff(self.cdf).max(1), self._escape_counts))

    def bits(self, symbols: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What each symbol takes in a stream, float64 (N,); arguments as for `Encoder.put`. Their sum is its length."""
        bits, coded = np.zeros(len(symbols)), rows >= 0
        bits[coded] = self._bits(symbols[coded], rows[coded])
        return bits

    def _bits(self, symbols: np.ndarray, rows: np.ndarray) -> np.ndarray:
        excess = np.abs(symbols.astype(np.int64)) - self.reach[rows]
        escaped, category = excess > 0, self._category(symbols)
        counts = self.cdf[rows, category + 1] - self.cdf[rows, category]
        bits = PRECISION - np.log2(np.where(escaped, self._escape_counts[rows], counts))
        widths = _widths(excess[escaped])
        bits[escaped] += PRECISION - np.log2(_ESCAPE_COUNTS[2 * widths]) + widths
        return bits

    def _category(self, symbols: np.ndarray) -> np.ndarray:
        values = symbols.astype(np.int64)
        return np.where(np.abs(values) > self.radius, 2 * self.radius + 1, values + self.radius)

    def occurrences(self, symbols: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How often each row's symbols −R, …, R and escape occur, int64 (T, 2R+2); arguments as for `Encoder.put`."""
        tables, categories = len(self.cdf), self.cdf.shape[1] - 1
        coded = rows >= 0
        places = rows[coded].astype(np.int64) * categories + self._category(symbols[coded])
        return np.bincount(places, minlength=tables * categories).reshape(tables, categories)

    def adapted(self, occurrences: np.ndarray, weight: float) -> "Tables":
        """Tables of the masses of symbols that were counted, these tables counting as much as ``weight`` symbols a row.

        Args:
            occurrences: As ``occurrences`` gives them; those of k and −k are averaged.
            weight: Positive.
        """
        counted = occurrences.astype(np.float64)
        counted[:, :-1] = (counted[:, :-1] + counted[:, -2::-1]) / 2
        return Tables.from_masses(counted + weight * np.diff(self.cdf) / TOTAL)

    def model(self, row: int) -> stream.model.Categorical:
        """The range coder's model of one row of reach r: symbol k is category k + r, the escape is category 2r + 1."""
        if row not in self._models:
            reach = self.reach[row]
            within = self.cdf[row, self.radius - reach : self.radius + reach + 2]
            self._models[row] = _categorical(np.append(np.diff(within), self._escape_counts[row]))
        return self._models[row]


def gaussian_tables(scales: np.ndarray, radius: int, dead_zones: np.ndarray | None = None) -> Tables:
    """Tables of zero-mean Gaussians integrated over cells [k − ½, k + ½], that of 0 widened at its neighbours' cost.

    The escape carries the mass outside ±(radius + ½). Runs when a model is exported; decoders read the stored counts.

    Args:
        scales: (T,) standard deviations in units of the quantisation step, all positive.
        radius: R ≥ 0.
        dead_zones: (T,) how far the cell of 0 reaches, in [½, 1.5); ½ if None.

    Raises:
        ModelError: a scale is not positive and finite.
    """
    scales = np.asarray(scales, dtype=np.float64)
    if scales.ndim != 1 or not np.isfinite(scales).all() or (scales <= 0).any():
        raise ModelError("scales must be positive and finite")
    edges = np.tile(np.arange(radius + 1) + 0.5, (len(scales), 1))
    if dead_zones is not None:
        edges[:, 0] = dead_zones
    tail = np.vectorize(erfc)(edges / (scales[:, None] * sqrt(2))) / 2
    side = tail[:, :-1] - tail[:, 1:]
    return Tables.from_masses(np.hstack([side[:, ::-1], 1 - 2 * tail[:, :1], side, 2 * tail[:, -1:]]))


class Encoder:
    """Writes symbols to one stream; a `Decoder` asked for the same rows in the same order reads them back."""

    def __init__(self) -> None:
        self._coder = stream.queue.RangeEncoder()
        self._crc = 0

    def put(self, symbols: np.ndarray, rows: np.ndarray, tables: Tables) -> None:
        """Codes each symbol with its row of the tables.

        Args:
            symbols: int32 (N,), any value; symbols beyond their row's reach cost an escape and an Elias-gamma code.
            rows: integers (N,) in [0, T), or −1 for symbols that are 0 and not written.
            tables: the probabilities.

        Raises:
            ValueError: there are not as many symbols as rows, a row does not exist, or a symbol of row −1 is not 0.
        """
        symbols = np.asarray(symbols).astype(np.int32, casting="safe", copy=False)
        if symbols.shape != rows.shape:
            raise ValueError(f"{symbols.shape} symbols need as many rows, not {rows.shape}")
        coded, rows = _coded(rows, tables)
        written = symbols[coded]
        if np.count_nonzero(written) < np.count_nonzero(symbols):
            raise ValueError("symbols that are not written must be 0")
        values, counts = written[np.argsort(rows, kind="stable")], np.bincount(rows, minlength=len(tables.cdf))
        reach = np.repeat(tables.reach, counts)
        escaped = (values < -reach) | (values > reach)
        categories = np.where(escaped, 2 * reach + 1, values + reach)
        for row, span in _groups(counts):
            self._coder.encode(categories[span], tables.model(row))
        if escaped.any():
            self._put_escapes(values[escaped].astype(np.int64), reach[escaped])
        self._crc = _checksum(written, self._crc)

    def _put_escapes(self, values: np.ndarray, reach: np.ndarray) -> None:
        excess = np.abs(values) - reach
        widths = _widths(excess)
        self._coder.encode((2 * widths + (values < 0)).astype(np.int32), _ESCAPE_HEAD)
        for part, bits, shift in _binary_digits(widths):
            digits = (excess[part] >> shift) & ((1 << bits) - 1)
            self._coder.encode(digits.astype(np.int32), stream.model.Uniform(), (1 << bits).astype(np.int32))

    def finish(self) -> bytes:
        """The stream: a multiple of 4 bytes, at least 4."""
        return self._coder.get_compressed().astype("<u4").tobytes() + self._crc.to_bytes(4, "little")


class Decoder:
    """Reads symbols from a stream written by `Encoder`.

    From a damaged stream `get` returns some integers or raises; only `check` vouches for what was read.

    Raises:
        BitstreamError: the length cannot be that of a stream.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < 4 or len(data) % 4:
            raise BitstreamError(f"the coded symbols are cut off: {len(data)} bytes are no whole number of words")
        self._coder = stream.queue.RangeDecoder(np.frombuffer(data[:-4], dtype="<u4").astype(np.uint32))
        self._expected = int.from_bytes(data[-4:], "little")
        self._crc = 0
        self._spare_bits = 8.0 * len(data)

    def get(self, rows: np.ndarray, tables: Tables) -> np.ndarray:
        """Reads one symbol for each row.

        Args:
            rows: integers (N,) as given to `Encoder.put`.
            tables: the probabilities given to `Encoder.put`.

        Returns:
            int32 (N,)

        Raises:
            BitstreamError: no encoder can have written this.
        """
        symbols = np.zeros(len(rows), dtype=np.int32)
        coded, rows = _coded(rows, tables)
        counts = np.bincount(rows, minlength=len(tables.cdf))
        self._spare_bits -= counts @ tables.least_bits
        if self._spare_bits < 0:
            raise BitstreamError("the coded symbols are cut off: there is less data than they need")
        values = np.empty(len(rows), dtype=np.int32)
        try:
            for row, span in _groups(counts):
                values[span] = self._coder.decode(tables.model(row), span.stop - span.start)
            reach = np.repeat(tables.reach, counts)
            escaped = values > 2 * reach
            values -= reach
            if escaped.any():
                values[escaped] = self._get_escapes(reach[escaped])
        except AssertionError as error:  # how constriction reports invalid data
            raise BitstreamError("the coded symbols are damaged") from error
        read = np.empty_like(values)
        read[np.argsort(rows, kind="stable")] = values
        self._crc = _checksum(read, self._crc)
        symbols[coded] = read
        return symbols

    def _get_escapes(self, reach: np.ndarray) -> np.ndarray:
        heads = self._coder.decode(_ESCAPE_HEAD, len(reach)).astype(np.int64)
        widths = heads >> 1
        excess = np.ones(len(reach), dtype=np.int64)
        for part, bits, _ in _binary_digits(widths):
            digits = self._coder.decode(stream.model.Uniform(), (1 << bits).astype(np.int32))
            excess[part] = (excess[part] << bits) | digits
        values = np.where(heads & 1, -1, 1) * (excess + reach)
        if (values < INT32_MIN).any() or (values > INT32_MAX).any():
            raise BitstreamError("the coded symbols are damaged: one exceeds 32 bits")
        return values

    def check(self) -> None:
        """Checks that all was read and that the symbols are those written.

        Raises:
            BitstreamError: data is left over, or the checksum of the symbols differs.
        """
        if self._crc != self._expected or not self._coder.maybe_exhausted():
            raise BitstreamError("the coded symbols are damaged: their checksum differs")


def _categorical(counts: np.ndarray) -> stream.model.Categorical:
    return stream.model.Categorical((counts - 1).astype(np.float64), perfect=False)


# Elias-gamma: the width of an excess of 2**width … 2**(width+1) − 1 and the sign, then `width` plain binary digits.
_ESCAPE_COUNTS = np.array([1 << (22 - width) if width < 16 else 8 for width in range(32) for _ in "+-"])
_ESCAPE_HEAD = _categorical(_ESCAPE_COUNTS)


def _widths(excess: np.ndarray) -> np.ndarray:
    return np.frexp(excess.astype(np.float64))[1] - 1


def _binary_digits(widths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cuts the digits in pieces of at most 16, highest first: (which numbers have them, how many, their place)."""
    low = np.minimum(widths, 16)
    for bits, shift in ((widths - low, low), (low, np.zeros_like(low))):
        part = bits > 0
        if part.any():
            yield part, bits[part], shift[part]


def _coded(rows: np.ndarray, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Where rows are not −1, and what they are there, in so few bytes that argsort(kind="stable") is a radix sort."""
    if rows.ndim != 1 or (rows.size and not -1 <= rows.min() <= rows.max() < len(tables.cdf)):
        raise ValueError(f"rows must be a vector of integers in [-1, {len(tables.cdf)})")
    coded = np.flatnonzero(rows >= 0)
    return coded, rows[coded].astype(np.min_scalar_type(len(tables.cdf) - 1))


def _groups(counts: np.ndarray) -> Iterator[tuple[int, slice]]:
    """The rows in use, in increasing order, and where their symbols stand once sorted by row; given their numbers."""
    ends = np.cumsum(counts)
    for row in np.flatnonzero(counts).tolist():
        yield row, slice(int(ends[row] - counts[row]), int(ends[row]))


def _checksum(symbols: np.ndarray, crc: int) -> int:
    return zlib.crc32(symbols.astype("<i4", copy=False).data, crc)
