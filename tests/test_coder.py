import numpy as np
import pytest
from constriction import stream
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bayesq.coder import INT32_MAX, INT32_MIN, TOTAL, Decoder, Encoder, Tables, gaussian_tables
from bayesq.errors import BitstreamError, ModelError

TABLES = {
    "gaussian": gaussian_tables(np.geomspace(0.11, 64, 16), 40),
    "all at zero": gaussian_tables(np.array([1e-6]), 3),
    "nearly flat": gaussian_tables(np.array([1e6]), 3),
    "radius 0": gaussian_tables(np.array([0.3, 5.0]), 0),
    "skewed": Tables.from_masses(np.array([[0, 0, 0, 0, 0, 1.0], [1, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])),
}
GOLDEN_CDF = [
    [0, 1, 7, 22651, 2661796, 14115419, 16754564, 16777208, 16777214, 16777215, 16777216],
    [0, 920487, 2273669, 4055563, 6157389, 8378150, 10479976, 12261870, 13615051, 14535539, 16777216],
]
GOLDEN_STREAM = "ff5962d7d4aeaefe7a69e1cf52fedce6fc3116fb3046adbd"
INT32 = st.one_of(st.integers(-50, 50), st.integers(INT32_MIN, INT32_MAX), st.sampled_from([INT32_MIN, INT32_MAX]))


def encode(*parts: tuple[np.ndarray, np.ndarray, Tables]) -> bytes:
    encoder = Encoder()
    for symbols, rows, tables in parts:
        encoder.put(symbols, rows, tables)
    return encoder.finish()


def gaussian_symbols(n: int, scales: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(scales), n)
    return np.rint(generator.normal(size=n) * scales[rows]).astype(np.int32), rows


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
@settings(max_examples=40)
def test_any_int32_comes_back(name, data):
    tables = TABLES[name]
    parts = []
    for _ in range(data.draw(st.integers(1, 3))):
        n = data.draw(st.integers(0, 30))
        rows = data.draw(arrays(np.int64, n, elements=st.integers(-1, len(tables.cdf) - 1)))
        parts.append((np.where(rows < 0, 0, data.draw(arrays(np.int32, n, elements=INT32))), rows, tables))
    written = encode(*parts)
    bits = sum(float(tables.bits(symbols, rows).sum()) for symbols, rows, tables in parts)
    assert -1 < 8 * len(written) - bits < 128
    decoder = Decoder(written)
    for symbols, rows, _ in parts:
        decoded = decoder.get(rows, tables)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)
    decoder.check()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_symbols(name, n):
    symbols, rows = np.arange(n, dtype=np.int32), np.zeros(n, np.int64)
    decoder = Decoder(encode((symbols, rows, TABLES[name])))
    np.testing.assert_array_equal(decoder.get(rows, TABLES[name]), symbols)
    decoder.check()


@pytest.mark.parametrize("symbol", [INT32_MIN, INT32_MIN + 1, -(1 << 16), -1, 0, 1, 1 << 16, INT32_MAX])
@pytest.mark.parametrize("radius", [0, 1, 255])
def test_extreme_symbols_cost_little_more_than_their_digits(symbol, radius):
    tables = gaussian_tables(np.array([0.2]), radius)
    symbols, rows = np.full(100, symbol, np.int32), np.zeros(100, np.int64)
    data = encode((symbols, rows, tables))
    assert len(data) <= 100 * (24 + 22 + 31) / 8 + 16
    np.testing.assert_array_equal(Decoder(data).get(rows, tables), symbols)


@given(
    counts=st.lists(st.integers(1, 1 << 20), min_size=2, max_size=30).filter(lambda c: len(c) % 2 == 0),
    data=st.data(),
)
def test_the_range_coder_sees_exactly_the_counts(counts, data):
    counts = np.array(counts)
    counts = np.maximum(1, counts * (TOTAL - len(counts)) // counts.sum())
    counts[data.draw(st.integers(0, len(counts) - 1))] += TOTAL - counts.sum()
    cdf = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    model = Tables(cdf[None]).model(0)
    for category in range(len(counts)):
        coder = stream.queue.RangeEncoder()
        unit = coder.pos()[1][1] >> 24
        coder.encode(category, model)
        lower, width = coder.pos()[1]
        assert (lower, width) == (unit * int(cdf[category]), unit * int(counts[category]))


@given(arrays(np.float64, (3, 8), elements=st.floats(0, 1)).filter(lambda m: (m.sum(1) > 0).all()))
def test_counts_follow_the_masses(masses):
    counts = np.diff(Tables.from_masses(masses).cdf)
    assert (counts >= 1).all() and (counts.sum(1) == TOTAL).all()
    shares = masses / masses.sum(1, keepdims=True) * (TOTAL - 8)
    assert np.abs(counts - 1 - shares).max() <= 1 + 1e-6


def test_gaussian_tables_integrate_unit_cells():
    scales = np.array([0.3, 1.0, 4.0])
    counts = np.diff(gaussian_tables(scales, 20).cdf) / TOTAL
    draws = np.random.default_rng(0).normal(size=(200_000, 1)) * scales
    for k in range(-3, 4):
        np.testing.assert_allclose(counts[:, 20 + k], (np.rint(draws) == k).mean(0), atol=4e-3)
    np.testing.assert_allclose(counts[:, :41], counts[:, 40::-1], atol=4 / TOTAL)
    np.testing.assert_allclose(counts[2, -1], 2.9e-7, atol=1e-7)


def test_the_rate_is_the_entropy():
    scales = np.geomspace(0.11, 60, 64)
    tables = gaussian_tables(scales, 255)
    symbols, rows = gaussian_symbols(100_000, scales)
    bits = -np.log2(np.diff(tables.cdf)[rows, symbols + 255] / TOTAL).sum()
    assert bits <= 8 * len(encode((symbols, rows, tables))) <= bits + 128


def test_adapted_tables_take_the_entropy_of_what_was_counted():
    generator, tables = np.random.default_rng(0), TABLES["gaussian"]
    rows = generator.integers(-1, 3, 20_000)
    symbols = np.where(rows < 0, 0, np.rint(generator.laplace(size=rows.size) * 30)).astype(np.int32)
    counted = tables.occurrences(symbols, rows)
    assert counted.sum() == (rows >= 0).sum() and not counted[3:].any()
    assert counted[1, tables.radius] == np.count_nonzero((rows == 1) & (symbols == 0))
    assert counted[2, -1] == np.count_nonzero((rows == 2) & (np.abs(symbols) > tables.radius))

    adapted = tables.adapted(counted, 1.0)
    masses, given = np.diff(adapted.cdf) / TOTAL, np.diff(tables.cdf) / TOTAL
    np.testing.assert_allclose(masses[:, :-1], masses[:, -2::-1], atol=1e-6)
    np.testing.assert_allclose(masses[3:], given[3:], atol=1e-5)
    shares = counted[:3] / counted[:3].sum(1, keepdims=True)
    assert np.abs(masses[:3] - shares).max() < 0.01
    assert adapted.bits(symbols, rows).sum() < 0.9 * tables.bits(symbols, rows).sum()


def test_a_certain_symbol_is_almost_free():
    tables = gaussian_tables(np.array([0.05]), 255)
    assert len(encode((np.zeros(10_000, np.int32), np.zeros(10_000, np.int64), tables))) <= 12


def test_the_stream_does_not_drift():
    symbols = np.array([0, -1, 4, 5, -70000, 2, INT32_MIN, 0], np.int32)
    rows = np.array([0, 1, 1, 0, 1, 1, 0, 0])
    assert encode((symbols, rows, Tables(np.array(GOLDEN_CDF, np.int32)))).hex() == GOLDEN_STREAM


@given(data=st.binary(max_size=200), n=st.integers(0, 300), name=st.sampled_from(sorted(TABLES)))
@settings(max_examples=300)
def test_noise_is_read_as_integers_or_refused(data, n, name):
    tables = TABLES[name]
    try:
        decoder = Decoder(data)
        symbols = decoder.get(np.arange(n) % len(tables.cdf), tables)
        assert symbols.dtype == np.int32 and symbols.shape == (n,)
        decoder.check()
    except BitstreamError as error:
        assert "\n" not in str(error)


def test_every_flipped_bit_and_truncation_is_noticed():
    tables = gaussian_tables(np.array([0.5, 3.0]), 4)
    symbols, rows = gaussian_symbols(60, np.array([0.5, 3.0]))
    symbols[7] = 1000
    data = encode((symbols, rows, tables))
    damaged = [data[:k] for k in range(len(data))] + [data + bytes(4)]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    noticed = 0
    for piece in damaged:
        try:
            decoder = Decoder(piece)
            decoded = decoder.get(rows, tables)
            decoder.check()
            np.testing.assert_array_equal(decoded, symbols)
        except BitstreamError:
            noticed += 1
    assert noticed >= len(damaged) - 32  # the last word of a range coder has bits that mean nothing


def test_reading_too_little_or_by_other_rows_is_noticed():
    tables = TABLES["gaussian"]
    symbols, rows = gaussian_symbols(500, np.geomspace(0.11, 64, 16))
    data = encode((symbols, rows, tables))
    for wrong in (rows[:-1], rows[:0], np.append(rows, 0), rows[::-1]):
        with pytest.raises(BitstreamError):
            decoder = Decoder(data)
            decoder.get(wrong, tables)
            decoder.check()


@pytest.mark.parametrize(
    "cdf",
    [
        np.array([[0, 1, 2, TOTAL]], np.int32),
        np.array([[0, 0, TOTAL]], np.int32),
        np.array([[0, 5, TOTAL - 1]], np.int32),
        np.array([[1, 5, TOTAL]], np.int32),
        np.array([0, 5, TOTAL], np.int32),
        np.array([[0, 5, TOTAL]], np.int64),
        np.zeros((0, 3), np.int32),
    ],
)
def test_malformed_tables_are_refused(cdf):
    with pytest.raises(ModelError):
        Tables(cdf)


@pytest.mark.parametrize("scales", [[0.0], [-1.0], [np.nan], [np.inf], [[1.0]]])
def test_malformed_scales_are_refused(scales):
    with pytest.raises(ModelError):
        gaussian_tables(np.array(scales), 3)


@pytest.mark.parametrize("rows", [[16], [-2], [[0]]])
def test_unknown_rows_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        Encoder().put(np.array([0], np.int32), np.array(rows), TABLES["gaussian"])
    with pytest.raises(ValueError, match="rows"):
        Decoder(bytes(4)).get(np.array(rows), TABLES["gaussian"])


def test_symbols_that_are_not_written_are_0():
    with pytest.raises(ValueError, match="must be 0"):
        Encoder().put(np.array([5, 1], np.int32), np.array([0, -1]), TABLES["gaussian"])


def test_fractional_symbols_are_refused():
    with pytest.raises(TypeError):
        Encoder().put(np.array([0.5]), np.array([0]), TABLES["gaussian"])
