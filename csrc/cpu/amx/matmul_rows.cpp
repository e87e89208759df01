// Products of up to some hundred rows with a large matrix (../matmul_rows.cpp) in bfloat16 on AMX
// tiles. Every number of w comes from memory once, for all rows of a.
//
//   a w^T + bias   rows of w are rows of A, as they lie in memory, and a is packed as B. A task
//                  takes some strips of 32 rows of w; their sums come out turned.
//                    for each slice of the reduction, if there are more than 32 rows of a
//                      for each strip, for each 32 rows of a: 2 x 2 tiles over the slice
//   a w            a task takes some columns. Pieces of w under them are packed, in L1 or L2, and
//                  multiplied with every 32 rows of a; their sums stay beside them.
//
// Meanwhile the next part of w is brought into L2: of the one some lines per step, of the other
// while a piece is packed.
// Floor: w over the bandwidth of memory, or 2 rows inner columns flops.
#include "core/allocator.h"
#include "cpu/amx/tiles.h"
#include "cpu/conv_input.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kDepth = 32;            // values of a step
constexpr int64_t kWide = 2 * kTile;  // rows or columns of w, or rows of a, under two tiles
constexpr int64_t kMostRows = 256;    // of a: the sums of a task, 32 KB for each 32, stay in L2
constexpr int64_t kSliceSteps = 64;   // a strip's slice is 128 KB, that of 32 rows of a as much
constexpr int64_t kStrips = 4;        // of a task of a w^T, for which a comes from L2 once
constexpr int64_t kBlocks = 8;        // of kWide columns, of a task of a w
constexpr int64_t kPieceSteps = 4;    // of the reduction, of a piece of w; of few rows, half
constexpr int64_t kStepValues = 2 * kDepth * kTile;  // values of B under two tiles
constexpr int64_t kSums = kWide * kWide;

MatmulSlots wide;  // the AVX-512 kernels

// Whether whole tiles cover w.
bool fits(const MatmulParams& p, bool turned) {
  return p.dtype == DType::bfloat16 && p.inner % kDepth == 0 &&
         p.columns >= (turned ? kBlocks * kWide : kWide);
}

// Pairs of tiles of rows of a; the last may be a single tile.
struct Pairs {
  int64_t rows, count;
  explicit Pairs(int64_t rows) : rows(rows), count(ceil_div(rows, kWide)) {}
  int64_t tiles(int64_t pair) const { return clamp(ceil_div(rows - pair * kWide, kTile), 1, 2); }
};

// B[pair][step][half][pair of values][16 rows][2], zeros for rows that do not exist.
void pack(const MatmulParams& p, const bfloat16* a, const Pairs& pairs, bfloat16* to) {
  const int64_t steps = p.inner / kDepth;
  parallel_for(ceil_div(steps, kSliceSteps), [&](int64_t slice) {
    const int64_t end = clamp(steps, 0, (slice + 1) * kSliceSteps);
    for (int64_t pair = 0; pair < pairs.count; ++pair)
      for (int64_t s = slice * kSliceSteps; s < end; ++s)
        for (int64_t half = 0; half < pairs.tiles(pair); ++half) {
          const int64_t row = pair * kWide + half * kTile;
          bfloat16* const b =
              to + pair * steps * kStepValues + (s * pairs.tiles(pair) + half) * kDepth * kTile;
          turn_rows(a + row * p.inner + s * kDepth, p.inner, p.rows - row, ~__mmask32{}, kDepth, 0,
                    b);
        }
  });
}

// Adds the products of 32 rows of w with 16 NB rows of a to sums[32][2 * kTile].
template <int NB>
void product(const bfloat16* w, int64_t pitch, const bfloat16* b, int64_t steps, bool add,
             float* sums, NextRows& next) {
  load_sums<2, NB>(sums, add);
  for (int64_t s = 0; s < steps; ++s, w += kDepth, b += NB * kDepth * kTile) {
    next.fetch();
    multiply<2, NB>(w, w + kTile * pitch, pitch * 2, b, b + kDepth * kTile);
  }
  store_sums<2, NB>(sums);
}

// Turns the sums of a strip, from row `o` of w on, with 32 rows of a, from `row` on.
void write_turned(const MatmulParams& p, const float* sums, const float* bias, int64_t row,
                  int64_t o, bfloat16* out) {
  for (int64_t half = 0; half < 4; ++half) {
    const int64_t first = row + half / 2 * kTile, from = half % 2 * kTile;  // of a, and of w
    if (first >= p.rows) return;
    vfloat turned[kTile];
    for (int i = 0; i < kTile; ++i) turned[i] = load(sums + (from + i) * kWide + half / 2 * kTile);
    transpose(turned);
    const vfloat shift = bias ? load(bias + o + from) : vfloat{};
    for (int64_t r = first; r < first + kTile && r < p.rows; ++r)
      store(out + r * p.columns + o + from, turned[r - first] + shift);
  }
}

void rows(const MatmulParams& p, const void* a, const void* w, const float* bias, void* out) {
  if (!fits(p, false)) return wide.rows(p, a, w, bias, out);
  const Pairs pairs(p.rows);
  const int64_t steps = p.inner / kDepth, strips = ceil_div(p.columns, kWide);
  Workspace packed(pairs.count * steps * kStepValues * 2);
  auto* const b = reinterpret_cast<bfloat16*>(packed.floats());
  pack(p, static_cast<const bfloat16*>(a), pairs, b);
  // The last rows may be computed twice, alike.
  const auto strip_rows = [&](int64_t strip) { return clamp(p.columns - kWide, 0, strip * kWide); };
  const int64_t slice = pairs.count > 1 ? kSliceSteps : steps;
  const int64_t most = pairs.count > 1 ? kStrips : 1;
  const int64_t together = clamp(strips / (4 * get_num_threads()), 1, most);
  parallel_for_dynamic(ceil_div(strips, together), [&](int64_t task) {
    const int64_t first = task * together, last = clamp(strips, 0, first + together);
    auto* const sums = static_cast<float*>(thread_scratch(together * pairs.count * kSums * 4));
    const auto part_of = [&](int64_t strip, int64_t step) {
      return static_cast<const bfloat16*>(w) + strip_rows(strip) * p.inner + step * kDepth;
    };
    shape_tiles(kTile, kDepth);
    for (int64_t step = 0; step < steps; step += slice) {
      const int64_t n = clamp(steps - step, 0, slice), after = step + n;
      for (int64_t strip = first; strip < last; ++strip) {
        // After the task's last part comes, most likely, the next task's first.
        NextRows next{};
        const bool more = strip + 1 < last, ends = !more && after == steps;
        const int64_t later = more ? strip + 1 : ends ? last : first;
        const int64_t from = more ? step : ends ? 0 : after;
        if (later < strips)
          next.bring(part_of(later, from), p.inner, clamp(steps - from, 0, slice) * kDepth, kWide,
                     n * pairs.count);
        for (int64_t pair = 0; pair < pairs.count; ++pair)
          (pairs.tiles(pair) == 2
               ? product<2>
               : product<1>)(part_of(strip, step), p.inner,
                             b + (pair * steps * 2 + step * pairs.tiles(pair)) * kDepth * kTile, n,
                             step > 0, sums + ((strip - first) * pairs.count + pair) * kSums, next);
      }
    }
    release_tiles();
    for (int64_t strip = first; strip < last; ++strip)
      for (int64_t pair = 0; pair < pairs.count; ++pair)
        write_turned(p, sums + ((strip - first) * pairs.count + pair) * kSums, bias, pair * kWide,
                     strip_rows(strip), static_cast<bfloat16*>(out));
  });
}

// `steps` steps of w under kBlocks times 32 columns as B[block][step][half][pair of rows][16][2]:
// rows of w are read in long runs, which memory gives faster. What lies `ahead` is fetched.
FASTNN_INLINE void pack_piece(const bfloat16* w, int64_t pitch, int64_t steps, int64_t ahead,
                              bfloat16* to) {
  for (int64_t s = 0; s < steps; ++s, to += kStepValues)
    for (int64_t i = 0; i < kDepth; i += 2, w += 2 * pitch)
      for (int64_t block = 0; block < kBlocks; ++block) {
        const bfloat16* const from = w + block * kWide;
        bfloat16* const out = to + block * kPieceSteps * kStepValues;
        __builtin_prefetch(from + ahead, 0, 2);
        __builtin_prefetch(from + ahead + pitch, 0, 2);
        store_pairs(_mm512_loadu_si512(from), _mm512_loadu_si512(from + pitch), out + i * kTile,
                    out + (kDepth + i) * kTile);
      }
}

// Adds a piece's products with 16 MA rows of a to sums[2 * kTile][2 * kTile].
template <int MA>
void add_piece(const bfloat16* a, int64_t pitch, const bfloat16* b, int64_t steps, bool add,
               float* sums) {
  load_sums<MA, 2>(sums, add);
  for (int64_t s = 0; s < steps; ++s, a += kDepth, b += kStepValues)
    multiply<MA, 2>(a, a + kTile * pitch, pitch * 2, b, b + kDepth * kTile);
  store_sums<MA, 2>(sums);
}

void rows_turned(const MatmulParams& p, const void* a, const void* w, void* out) {
  if (!fits(p, true)) return wide.rows_turned(p, a, w, out);
  const Pairs pairs(p.rows);
  // Whole tiles of rows, of which those beyond come to nothing; a step more from row to row, for
  // rows a power of two apart share a few sets of the caches.
  const int64_t pitch = p.inner + kDepth;
  Workspace padded(pairs.count * kWide * pitch * 2);
  auto* const rows = reinterpret_cast<bfloat16*>(padded.floats());
  parallel_for(pairs.count * kWide, [&](int64_t r) {
    if (r < p.rows)
      copy_values(rows + r * pitch, static_cast<const bfloat16*>(a) + r * p.inner, p.inner);
    else
      zero_values(rows + r * pitch, p.inner);
  });
  const int64_t at_once = (pairs.count > 1 ? kPieceSteps : kPieceSteps / 2) * kDepth;
  parallel_for_dynamic(ceil_div(p.columns, kBlocks * kWide), [&](int64_t task) {
    const int64_t last = p.columns - kBlocks * kWide, first = task * kBlocks * kWide;
    const int64_t column = first < last ? first : last;
    const auto* const from = static_cast<const bfloat16*>(w) + column;
    constexpr int64_t kPiece = kBlocks * kPieceSteps * kStepValues;
    auto* const piece =
        static_cast<bfloat16*>(thread_scratch(kPiece * 2 + kBlocks * pairs.count * kSums * 4));
    auto* const sums = reinterpret_cast<float*>(piece + kPiece);  // [block][pair][32][32]
    shape_tiles(kTile, kDepth);
    for (int64_t k = 0; k < p.inner; k += at_once) {
      const int64_t steps = clamp(p.inner - k, 0, at_once) / kDepth;
      pack_piece(from + k * p.columns, p.columns, steps, at_once * p.columns, piece);
      for (int64_t block = 0; block < kBlocks; ++block)
        for (int64_t pair = 0; pair < pairs.count; ++pair)
          (pairs.tiles(pair) == 2 ? add_piece<2>
                                  : add_piece<1>)(rows + pair * kWide * pitch + k, pitch,
                                                  piece + block * kPieceSteps * kStepValues, steps,
                                                  k > 0,
                                                  sums + (block * pairs.count + pair) * kSums);
    }
    release_tiles();
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t block = 0; block < kBlocks; ++block)
        for (int64_t half = 0; half < kWide; half += kTile)
          store(static_cast<bfloat16*>(out) + r * p.columns + column + block * kWide + half,
                load(sums + (block * pairs.count + r / kWide) * kSums + r % kWide * kWide + half));
  });
}

// Of more rows, those are the convolution's whose matrix pays for its packing.
bool takes(const MatmulParams& p, bool turned) {
  return wide.takes(p, turned) &&
         (p.dtype == DType::float32 || p.rows <= kWide || (p.rows <= kMostRows && fits(p, turned)));
}

}  // namespace

void fill_matmul_rows(Slots& slots) {
  wide = slots.matmul;
  slots.matmul = {takes, rows, rows_turned, wide.outer};
}

}  // namespace fastnn::cpu::FASTNN_ISA
