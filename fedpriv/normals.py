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
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedpriv import native

__all__ = ["normals", "normals_numpy", "operator"]

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
EXPONENT: Final = -(1 << 52)  # of a double, with its sign
MINUS_LOG: Final = tuple(-value for value in LOG)
BLOCK: Final = 16384  # pairs at a time: the work space stays in the processor's cache


def normals(words: NDArray[np.uint64], *, fast: bool = False) -> NDArray[np.float64]:
    """[2 M] random words -> [2 M] standard normals: words i and M + i give normals i and M + i.

    Args:
        words: uniform, an even number of them.
        fast: by the C++ operator, where it can be had (a warning says if not). The bits are the same.
    """
    run = operator() if fast else None
    return normals_numpy(words) if run is None else run(words)


def normals_numpy(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """See `normals`."""
    count = len(words) // 2
    out = np.empty(2 * count)
    work = np.empty((4, min(BLOCK, count)))
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        other = slice(count + start, count + stop)
        _pairs(words[start:stop], words[other], out[start:stop], out[other], work[:, : stop - start])
    return out


def _pairs(
    radius: NDArray[np.uint64],
    angle: NDArray[np.uint64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    work: NDArray[np.float64],
) -> None:
    """[n] words twice -> [n] normals twice. Every line is one operation per number; `work` is [4, n] to scribble on."""
    a, b, c, d = work
    bits, place = a.view(np.int64), b.view(np.int64)
    # a = 2^53 u; place = its exponent above sqrt(1/2), left where it stands in a double; a = 2^53 times the mantissa.
    # Powers of two change no rounding, so they are taken out where it saves a pass.
    np.right_shift(radius, np.uint64(11), out=a.view(np.uint64))
    np.copyto(a, bits)
    a += 0.5
    np.subtract(bits, ROOT_HALF + (53 << 52), out=place)
    place &= EXPONENT
    bits -= place
    np.copyto(b, place)
    # c = sqrt(-(s LOG(s^2) + k log 2)), with the sign in the coefficients
    np.add(a, 2.0**53, out=c)
    a -= 2.0**53
    a /= c
    np.multiply(a, a, out=d)
    _horner(MINUS_LOG, d, c)
    c *= a
    b *= -LOG_2 * 2.0**-52
    c += b
    np.sqrt(c, out=c)
    # a = psi, b = sin psi, then a = cos psi
    np.right_shift(angle, np.uint64(11), out=a.view(np.uint64))
    np.copyto(a, bits)
    a *= UNIT * HALF_PI  # exact: a power of two times a double
    a -= QUARTER_PI
    np.multiply(a, a, out=d)
    _horner(SIN, d, b)
    b *= a
    _horner(COS, d, a)
    np.subtract(a, b, out=x)
    x *= c
    np.add(a, b, out=y)
    y *= c
    sign = d.view(np.uint64)  # the two lowest bits of the second word
    np.left_shift(angle, np.uint64(63), out=sign)
    flipped = x.view(np.uint64)
    flipped ^= sign
    np.left_shift(angle, np.uint64(62), out=sign)
    sign &= np.uint64(1 << 63)
    flipped = y.view(np.uint64)
    flipped ^= sign


def _horner(coefficients: tuple[float, ...], z: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Writes the polynomial at z into `out`."""
    np.multiply(z, coefficients[-1], out=out)
    for coefficient in coefficients[-2:0:-1]:
        out += coefficient
        out *= z
    out += coefficients[0]


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

extern "C" void fedpriv_normals(const uint64_t* words, long count, double* out) {{
    for (long i = 0; i < count; ++i) {{
        const double u = double(int64_t(words[i] >> 11)) * {UNIT.hex()} + {HALF_UNIT.hex()};
        const int64_t bits = as_bits(u);
        const int64_t k = (bits - INT64_C({ROOT_HALF})) >> 52;
        const double m = as_double(bits - int64_t(uint64_t(k) << 52));
        const double s = (m - 1.0) / (m + 1.0);
        const double radius = std::sqrt(-(horner(LOG, s * s) * s + double(k) * {LOG_2.hex()}));
        const uint64_t w = words[count + i];
        const double psi = double(int64_t(w >> 11)) * {(UNIT * HALF_PI).hex()} - {QUARTER_PI.hex()};
        const double z = psi * psi;
        const double sine = horner(SIN, z) * psi, cosine = horner(COS, z);
        const uint64_t x = uint64_t(as_bits((cosine - sine) * radius)) ^ (w << 63);
        const uint64_t y = uint64_t(as_bits((cosine + sine) * radius)) ^ ((w << 62) & (UINT64_C(1) << 63));
        out[i] = as_double(int64_t(x));
        out[count + i] = as_double(int64_t(y));
    }}
}}
"""

FLAGS: Final = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


class Operator:
    """The compiled `normals`; it runs on one thread and lets other Python threads run meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._run = library.fedpriv_normals
        self._run.argtypes, self._run.restype = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p], None

    def __call__(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """See `normals`."""
        words = np.ascontiguousarray(words)
        out = np.empty(len(words) // 2 * 2)
        self._run(words.ctypes.data, len(words) // 2, out.ctypes.data)
        return out


def _prove(found: Operator) -> str:
    """Why the operator cannot be used: wrong noise would break the promise in silence. Empty if it can."""
    words = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, 2 * 4099, dtype=np.uint64)
    words[:4] = words[-4:] = [0, 1, 2**64 - 1, 1 << 63]
    same = np.array_equal(found(words).view(np.uint64), normals_numpy(words).view(np.uint64))
    return "" if same else "the compiled operator's normals differ from NumPy's"


def operator() -> Operator | None:
    """The C++ operator, built if this machine has none yet; None, with a warning, where it cannot be had."""
    return native.operator("normals", SOURCE, Operator, _prove, flags=FLAGS, instead="NumPy's")
