// Products of a few rows with a large matrix (../matmul_few_rows.cpp) in bfloat16 on AMX tiles.
//
//   a w^T + bias   rows of w are rows of A, as they lie in memory, and a is packed as B. A task
//                  takes 32 rows of w; their sums come out turned.
//   a w            a task takes some columns. Pieces of w under them are packed and multiplied in
//                  L1, where the sums stay too.
//
// Floor: w over the bandwidth of memory.
#include "core/allocator.h"
#include "cpu/amx/tiles.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kDepth = 32;            // values of a step
constexpr int64_t kAhead = 8;         // steps of a w^T, whose part of w is fetched
constexpr int64_t kWide = 2 * kTile;  // rows or columns of w under two tiles
constexpr int64_t kBlocks = 8;        // of kWide columns, of a task of a w
constexpr int64_t kPieceSteps = 2;    // of the reduction, of a piece of w

MatmulSlots wide;  // the AVX-512 kernels

// B[step][half of the rows][pair of values][16 rows][2], zeros for rows that do not exist.
void pack(const MatmulParams& p, const bfloat16* a, int halves, bfloat16* to) {
  for (int64_t from = 0; from < p.inner; from += kDepth)
    for (int half = 0; half < halves; ++half, to += kDepth * kTile) {
      const int64_t first = half * kTile;
      turn_rows(a + first * p.inner + from, p.inner, p.rows - first, ~__mmask32{}, kDepth, 0, to);
    }
}

// The products of 32 rows of w with 16 NB rows of a, to sums[32][2 * kTile].
template <int NB>
void product(const MatmulParams& p, const bfloat16* w, const bfloat16* b, float* sums) {
  const bfloat16* const below = w + kTile * p.inner;
  load_sums<2, NB>(sums, false);
  for (int64_t from = 0; from < p.inner; from += kDepth, b += NB * kDepth * kTile) {
    for (int64_t r = 0; r < kWide; ++r)
      __builtin_prefetch(w + r * p.inner + from + kAhead * kDepth);
    multiply<2, NB>(w + from, below + from, p.inner * 2, b, b + kDepth * kTile);
  }
  store_sums<2, NB>(sums);
}

void rows(const MatmulParams& p, const void* a, const void* w, const float* bias, void* out) {
  if (p.dtype != DType::bfloat16 || p.inner % kDepth != 0 || p.columns < kWide)
    return wide.rows(p, a, w, bias, out);
  const int halves = p.rows > kTile ? 2 : 1;
  Workspace packed(halves * kTile * p.inner * 2);
  auto* const b = reinterpret_cast<bfloat16*>(packed.floats());
  pack(p, static_cast<const bfloat16*>(a), halves, b);
  parallel_for_dynamic(ceil_div(p.columns, kWide), [&](int64_t task) {
    // The last rows may be computed twice, alike.
    const int64_t last = p.columns - kWide, first = task * kWide;
    const int64_t o = first < last ? first : last;
    alignas(64) float sums[kWide * 2 * kTile];
    shape_tiles(kTile, kDepth);
    (halves == 2 ? product<2> : product<1>)(p, static_cast<const bfloat16*>(w) + o * p.inner, b,
                                            sums);
    release_tiles();
    for (int half = 0; half < 2 * halves; ++half) {
      const int64_t rows = half / 2 * kTile, from = half % 2 * kTile;  // of a, and of w
      vfloat turned[kTile];
      for (int i = 0; i < kTile; ++i) turned[i] = load(sums + (from + i) * 2 * kTile + rows);
      transpose(turned);
      const vfloat shift = bias ? load(bias + o + from) : vfloat{};
      for (int64_t r = rows; r < rows + kTile && r < p.rows; ++r)
        store(static_cast<bfloat16*>(out) + r * p.columns + o + from, turned[r - rows] + shift);
    }
  });
}

// `steps` steps of w under kBlocks times 32 columns as B[block][step][half][pair of rows][16][2]:
// rows of w are read in long runs, which memory gives faster.
FASTNN_INLINE void pack_piece(const bfloat16* w, int64_t pitch, int64_t steps, bfloat16* to) {
  for (int64_t s = 0; s < steps; ++s, to += 2 * kDepth * kTile)
    for (int64_t i = 0; i < kDepth; i += 2, w += 2 * pitch)
      for (int64_t block = 0; block < kBlocks; ++block) {
        const bfloat16* const from = w + block * kWide;
        bfloat16* const out = to + block * kPieceSteps * 2 * kDepth * kTile;
        __builtin_prefetch(from + kPieceSteps * kDepth * pitch, 0, 2);
        __builtin_prefetch(from + (kPieceSteps * kDepth + 1) * pitch, 0, 2);
        store_pairs(_mm512_loadu_si512(from), _mm512_loadu_si512(from + pitch), out + i * kTile,
                    out + (kDepth + i) * kTile);
      }
}

// Adds a piece's products with 16 MA rows of a to sums[2][kTile][2 * kTile].
template <int MA>
void add_piece(const bfloat16* a, int64_t inner, const bfloat16* b, int64_t steps, bool add,
               float* sums) {
  load_sums<MA, 2>(sums, add);
  for (int64_t s = 0; s < steps; ++s, a += kDepth, b += 2 * kDepth * kTile)
    multiply<MA, 2>(a, a + kTile * inner, inner * 2, b, b + kDepth * kTile);
  store_sums<MA, 2>(sums);
}

void rows_turned(const MatmulParams& p, const void* a, const void* w, void* out) {
  if (p.dtype != DType::bfloat16 || p.inner % kDepth != 0 || p.columns < kBlocks * kWide)
    return wide.rows_turned(p, a, w, out);
  const int halves = p.rows > kTile ? 2 : 1;
  // Whole tiles of rows; what the rows beyond come to is not read.
  Workspace padded(halves * kTile * p.inner * 2);
  auto* const rows = reinterpret_cast<bfloat16*>(padded.floats());
  const int64_t given = p.rows * p.inner * 2, all = halves * kTile * p.inner * 2;
  __builtin_memcpy(rows, a, static_cast<size_t>(given));
  __builtin_memset(reinterpret_cast<char*>(rows) + given, 0, static_cast<size_t>(all - given));
  parallel_for_dynamic(ceil_div(p.columns, kBlocks * kWide), [&](int64_t task) {
    const int64_t last = p.columns - kBlocks * kWide, first = task * kBlocks * kWide;
    const int64_t column = first < last ? first : last;
    const auto* const from = static_cast<const bfloat16*>(w) + column;
    alignas(64) float sums[kBlocks][kWide * kWide];
    alignas(64) bfloat16 piece[kBlocks][kPieceSteps * 2 * kDepth * kTile];
    shape_tiles(kTile, kDepth);
    for (int64_t k = 0; k < p.inner; k += kPieceSteps * kDepth) {
      const int64_t left = (p.inner - k) / kDepth, steps = left < kPieceSteps ? left : kPieceSteps;
      pack_piece(from + k * p.columns, p.columns, steps, piece[0]);
      for (int64_t block = 0; block < kBlocks; ++block)
        (halves == 2 ? add_piece<2> : add_piece<1>)(rows + k, p.inner, piece[block], steps, k > 0,
                                                    sums[block]);
    }
    release_tiles();
    for (int64_t block = 0; block < kBlocks; ++block)
      for (int64_t r = 0; r < p.rows; ++r)
        for (int64_t half = 0; half < kWide; half += kTile)
          store(static_cast<bfloat16*>(out) + r * p.columns + column + block * kWide + half,
                load(sums[block] + r * kWide + half));
  });
}

// More rows than two tiles have are the convolution's.
bool takes(const MatmulParams& p, bool turned) {
  constexpr int64_t kMostRows = 2 * kTile;
  return wide.takes(p, turned) && (p.dtype == DType::float32 || p.rows <= kMostRows);
}

}  // namespace

void fill_matmul_rows(Slots& slots) {
  wide = slots.matmul;
  slots.matmul = {takes, rows, rows_turned};
}

}  // namespace fastnn::cpu::FASTNN_ISA
