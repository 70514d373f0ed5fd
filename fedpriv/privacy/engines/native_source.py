"""C++ source of the ghost norm operator, compiled on demand by `native`. Needs no headers but the standard ones."""

SOURCE = r"""
// For each row r with tokens a [T, p] and g [T, d]:
//   square[r] = sum over i, j of (a_i.a_j + bias) * (g_i.g_j)
//   size[r]   = sum over i of sqrt((a_i.a_i + bias) * (g_i.g_i))
// Products are symmetric, so half of the pairs is enough, and no T x T matrix is written. A block of BI x BJ pairs
// keeps one vector accumulator for each pair; a tree of shuffles then sums all of them at once into one vector.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, BI = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, BI = 4;
#else
constexpr int LANES = 4, BI = 2;
#endif
constexpr int BJ = LANES / BI;

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int Idx __attribute__((vector_size(4 * LANES)));

static inline Vec load(const float* x) {
    Vec v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

static inline Vec pairwise(Vec x, Vec y) {  // lane k: sum of lanes 2k and 2k + 1 of (x, y)
    Idx even, odd;
    for (int k = 0; k < LANES; ++k) {
        even[k] = 2 * k;
        odd[k] = 2 * k + 1;
    }
    return __builtin_shuffle(x, y, even) + __builtin_shuffle(x, y, odd);
}

// Lane i * BJ + j: the inner product of row i of `x` and row j of `y`, both padded to a multiple of LANES.
static inline Vec products(const float* const x[BI], const float* const y[BJ], long n) {
    Vec acc[LANES];
    for (int k = 0; k < LANES; ++k) acc[k] = Vec{};
    for (long c = 0; c < n; c += LANES) {
        Vec right[BJ];
        for (int j = 0; j < BJ; ++j) right[j] = load(y[j] + c);
        for (int i = 0; i < BI; ++i) {
            const Vec left = load(x[i] + c);
            for (int j = 0; j < BJ; ++j) acc[i * BJ + j] += left * right[j];
        }
    }
    for (int width = LANES / 2; width >= 1; width /= 2)
        for (int k = 0; k < width; ++k) acc[k] = pairwise(acc[2 * k], acc[2 * k + 1]);
    return acc[0];
}

// Tokens of one row, last axis dense: used in place if their length fits the vectors, else copied and padded.
struct Tokens {
    const float* start;
    long stride, padded;

    Tokens(const float* x, long count, long n, long token_stride, std::vector<float>& room) {
        padded = (n + LANES - 1) / LANES * LANES;
        start = x;
        stride = token_stride;
        if (padded == n) return;
        room.assign(count * padded, 0.0f);
        for (long t = 0; t < count; ++t) std::memcpy(room.data() + t * padded, x + t * token_stride, 4 * n);
        start = room.data();
        stride = padded;
    }
};

extern "C" void fedpriv_ghost_squares(
    const float* a, const float* g, long rows, long count, long p, long d, long a_row, long a_token, long g_row,
    long g_token, int bias, float* square, float* size) {
    std::vector<float> room_a, room_g;
    for (long r = 0; r < rows; ++r) {
        const Tokens in(a + r * a_row, count, p, a_token, room_a), out(g + r * g_row, count, d, g_token, room_g);
        double total = 0.0, roots = 0.0;
        for (long i0 = 0; i0 < count; i0 += BI) {
            const float *ai[BI], *gi[BI];
            for (int i = 0; i < BI; ++i) {
                const long t = i0 + i < count ? i0 + i : count - 1;  // repeated rows are left out below
                ai[i] = in.start + t * in.stride;
                gi[i] = out.start + t * out.stride;
            }
            for (long j0 = 0; j0 < i0 + BI && j0 < count; j0 += BJ) {
                const float *aj[BJ], *gj[BJ];
                for (int j = 0; j < BJ; ++j) {
                    const long t = j0 + j < count ? j0 + j : count - 1;
                    aj[j] = in.start + t * in.stride;
                    gj[j] = out.start + t * out.stride;
                }
                const Vec x = products(ai, aj, in.padded) + float(bias);
                const Vec y = products(gi, gj, out.padded);
                if (j0 + BJ <= i0 && i0 + BI <= count) {  // wholly below the diagonal: each pair stands for two
                    const Vec both = x * y;
                    float sum = 0.0f;
                    for (int k = 0; k < LANES; ++k) sum += both[k];
                    total += 2.0 * sum;
                    continue;
                }
                for (int i = 0; i < BI && i0 + i < count; ++i)
                    for (int j = 0; j < BJ && j0 + j <= i0 + i; ++j) {
                        const double pair = double(x[i * BJ + j]) * double(y[i * BJ + j]);
                        total += j0 + j == i0 + i ? pair : 2.0 * pair;
                        if (j0 + j == i0 + i) roots += std::sqrt(pair);
                    }
            }
        }
        square[r] = float(total);
        size[r] = float(roots);
    }
}
"""
