"""Standard normals in float64 from 64-bit words, the same bits everywhere.

Two words make two normals (Box and Muller 1958), with 53 random bits for the radius, 53 for the angle within a quadrant
and two for the quadrant. With u in (0, 1), psi in [-pi/4, pi/4) and independent signs,

    x = +-sqrt(-log u) (cos psi - sin psi),    y = +-sqrt(-log u) (cos psi + sin psi)

(cos and sin of the angle psi + pi/4, whose 1/sqrt(2) takes the 2 out of sqrt(-2 log u)). The tail reaches 8.65 standard
deviations; errors are a few units in the last place. Logarithm, sine and cosine are polynomials that use additions,
multiplications, divisions and square roots alone, in one fixed order and never fused. IEEE 754 prescribes every bit of
those, so that processors, library versions and the C++ twin of this function (`privacy.native`) cannot differ; tests
compare bits. As with any normals in floating point, Mironov's attack on last digits (2012) is not covered; see
docs/privacy.md.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpriv import native

__all__ = ["BLOCK", "Maker", "maker", "normals", "normals_numpy", "operator", "workspace"]

Maker: TypeAlias = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""A workspace [ROWS, n] whose first two rows hold words -> two of its rows, the normals. The rest is scribbled on."""

# log(m) = s * LOG(s^2) with s = (m - 1) / (m + 1), m in [sqrt(1/2), sqrt(2)): 2 atanh(s) / s. Interpolation at
# Chebyshev nodes in 50 digits; relative error below 2e-18.
LOG: Final = (2.0, 0.6666666666666765, 0.3999999999930191, 0.2857142876073828, 0.22222197046404274, 0.18183632241617026,
              0.153125131147383, 0.14809867572313062)  # fmt: skip
# sin(psi) = psi * SIN(psi^2), cos(psi) = COS(psi^2) for |psi| <= pi/4; relative errors below 4e-18 and 7e-17.
SIN: Final = (1.0, -0.16666666666666616, 0.008333333333320363, -0.000198412698286503, 2.755731337640013e-06,
              -2.5050716974102745e-08, 1.5894736651849094e-10)  # fmt: skip
COS: Final = (1.0, -0.4999999999999925, 0.041666666666472306, -0.0013888888869978658, 2.4801578538562985e-05,
              -2.755523388484742e-07, 2.0630454379662294e-09)  # fmt: skip

UNIT: Final = 2.0**-53
HALF_UNIT: Final = 2.0**-54
LOG_2: Final = math.log(2.0)
HALF_PI, QUARTER_PI = math.pi / 2, math.pi / 4
ROOT_HALF: Final = 0x3FE6A09E667F3BCD  # bits of sqrt(1/2)
BLOCK: Final = 16384  # pairs at a time: the workspace stays in the processor's second-level cache
ROWS: Final = 5
LINE: Final = 8  # doubles in a cache line

# What NumPy is handed, as arrays: it would make one of a Python number at every call.
_WORD = {bits: np.array(bits, dtype=np.uint64) for bits in (11, 62, 63, 1 << 63)}
_EXPONENT: Final = np.array(-(1 << 52))  # of a double, with its sign
_FIRST: Final = np.array(ROOT_HALF + (53 << 52))
_HALF, _WHOLE = np.array(0.5), np.array(2.0**53)
_MINUS_LOG_2: Final = np.array(-LOG_2 * 2.0**-52)
_TO_ANGLE, _QUARTER_PI = np.array(UNIT * HALF_PI), np.array(QUARTER_PI)  # the first is exact: a power of two times
_LOG, _SIN, _COS = (tuple(np.array(value) for value in values) for values in (tuple(-value for value in LOG), SIN, COS))


def normals(words: NDArray[np.uint64], *, fast: bool = False) -> NDArray[np.float64]:
    """[2 M] random words -> [2 M] standard normals: words i and M + i give normals i and M + i.

    Args:
        words: uniform, an even number of them.
        fast: by the C++ operator, where it can be had (a warning says if not). The bits are the same.
    """
    return _normals(words, maker(fast=fast))


def normals_numpy(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """See `normals`."""
    return _normals(words, _pairs)


def maker(*, fast: bool) -> Maker:
    """NumPy's, or the C++ operator, where it can be had (a warning says if not)."""
    return (operator() if fast else None) or _pairs


def workspace(pairs: int) -> NDArray[np.float64]:
    """[ROWS, pairs] uninitialised; rows start with a cache line, and not a power of two apart."""
    width = -(-pairs // LINE) * LINE + LINE
    memory = np.empty(ROWS * width + LINE)
    first = -memory.ctypes.data % (8 * LINE) // 8
    return memory[first : first + ROWS * width].reshape(ROWS, width)[:, :pairs]


def _normals(words: NDArray[np.uint64], make: Maker) -> NDArray[np.float64]:
    count = len(words) // 2
    out, work = np.empty(2 * count), workspace(min(BLOCK, count))
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        some = work[:, : stop - start]
        some[:2].view(np.uint64)[:] = words[start:stop], words[count + start : count + stop]
        out[start:stop], out[count + start : count + stop] = make(some)
    return out


def _pairs(work: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `Maker`. Every line is one operation per number."""
    a, angle, b, c, d = work
    word, bits, place = a.view(np.uint64), a.view(np.int64), b.view(np.int64)
    # a = 2^53 u; place = its exponent above sqrt(1/2), left where it stands in a double; a = 2^53 times the mantissa.
    # Powers of two change no rounding, so they are taken out where it saves a pass.
    np.right_shift(word, _WORD[11], out=word)
    np.copyto(a, bits)
    np.add(a, _HALF, out=a)
    np.subtract(bits, _FIRST, out=place)
    np.bitwise_and(place, _EXPONENT, out=place)
    np.subtract(bits, place, out=bits)
    np.copyto(b, place)
    # c = sqrt(-(s LOG(s^2) + k log 2)), with the sign in the coefficients
    np.add(a, _WHOLE, out=c)
    np.subtract(a, _WHOLE, out=a)
    np.divide(a, c, out=a)
    np.multiply(a, a, out=d)
    _horner(_LOG, d, c)
    np.multiply(c, a, out=c)
    np.multiply(b, _MINUS_LOG_2, out=b)
    np.add(c, b, out=c)
    np.sqrt(c, out=c)
    # a = psi, b = sin psi, then a = cos psi
    np.right_shift(angle.view(np.uint64), _WORD[11], out=word)
    np.copyto(a, bits)
    np.multiply(a, _TO_ANGLE, out=a)
    np.subtract(a, _QUARTER_PI, out=a)
    np.multiply(a, a, out=d)
    _horner(_SIN, d, b)
    np.multiply(b, a, out=b)
    _horner(_COS, d, a)
    np.subtract(a, b, out=d)
    np.multiply(d, c, out=d)
    np.add(a, b, out=b)
    np.multiply(b, c, out=b)
    # the two lowest bits of the second word are the signs
    x, y, second = d.view(np.uint64), b.view(np.uint64), angle.view(np.uint64)
    np.left_shift(second, _WORD[63], out=word)
    np.bitwise_xor(x, word, out=x)
    np.left_shift(second, _WORD[62], out=word)
    np.bitwise_and(word, _WORD[1 << 63], out=word)
    np.bitwise_xor(y, word, out=y)
    return d, b


def _horner(coefficients: tuple[NDArray[np.float64], ...], z: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Writes the polynomial at z into `out`."""
    np.multiply(z, coefficients[-1], out=out)
    for coefficient in coefficients[-2:0:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, z, out=out)
    np.add(out, coefficients[0], out=out)


def _literals(values: tuple[float, ...]) -> str:
    return ", ".join(value.hex() for value in values)


SOURCE: Final = f"""
// The C++ twin of normals_numpy: the same operations in the same order (powers of two aside), never fused
// (-ffp-contract=off).
#include <cmath>
#include <cstdint>
#include <cstring>

static const double LOG[] = {{{_literals(LOG)}}};
static const double SIN[] = {{{_literals(SIN)}}};
static const double COS[] = {{{_literals(COS)}}};

template <int N>
static inline double horner(const double (&c)[N], double z) {{
    double out = z * c[N - 1];
    for (int i = N - 2; i > 0; --i) out = (out + c[i]) * z;
    return out + c[0];
}}

static inline double as_double(int64_t bits) {{
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}}

static inline int64_t as_bits(double x) {{
    int64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}}

extern "C" void fedpriv_normals(
    const uint64_t* radius_words, const uint64_t* angle_words, long count, double* out_x, double* out_y) {{
    for (long i = 0; i < count; ++i) {{
        const double u = double(int64_t(radius_words[i] >> 11)) * {UNIT.hex()} + {HALF_UNIT.hex()};
        const int64_t bits = as_bits(u);
        const int64_t k = (bits - INT64_C({ROOT_HALF})) >> 52;
        const double m = as_double(bits - int64_t(uint64_t(k) << 52));
        const double s = (m - 1.0) / (m + 1.0);
        const double radius = std::sqrt(-(horner(LOG, s * s) * s + double(k) * {LOG_2.hex()}));
        const uint64_t w = angle_words[i];
        const double psi = double(int64_t(w >> 11)) * {(UNIT * HALF_PI).hex()} - {QUARTER_PI.hex()};
        const double z = psi * psi;
        const double sine = horner(SIN, z) * psi, cosine = horner(COS, z);
        const uint64_t x = uint64_t(as_bits((cosine - sine) * radius)) ^ (w << 63);
        const uint64_t y = uint64_t(as_bits((cosine + sine) * radius)) ^ ((w << 62) & (UINT64_C(1) << 63));
        out_x[i] = as_double(int64_t(x));
        out_y[i] = as_double(int64_t(y));
    }}
}}
"""

FLAGS: Final = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


class Operator:
    """The compiled `Maker`; it runs on one thread and lets other Python threads run meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.fedpriv_normals
        pointer = ctypes.c_void_p
        self._run.argtypes, self._run.restype = [pointer, pointer, ctypes.c_long, pointer, pointer], None

    def __call__(self, work: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `Maker`."""
        radius, angle, x, y, _ = work
        self._run(radius.ctypes.data, angle.ctypes.data, len(x), x.ctypes.data, y.ctypes.data)
        return x, y


def _prove(found: Operator) -> str:
    """Why the operator cannot be used: wrong noise would break the promise in silence. Empty if it can."""
    words = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, 2 * 4099, dtype=np.uint64)
    words[:4] = words[-4:] = [0, 1, 2**64 - 1, 1 << 63]
    same = np.array_equal(_normals(words, found).view(np.uint64), normals_numpy(words).view(np.uint64))
    return "" if same else "the compiled operator's normals differ from NumPy's"


def operator() -> Operator | None:
    """The C++ operator, built if this machine has none yet; None, with a warning, where it cannot be had."""
    return native.operator("normals", SOURCE, Operator, _prove, flags=FLAGS, instead="NumPy's")
