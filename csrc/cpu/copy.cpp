// Strided copies with dtype conversion.
//
// ops/copy.cpp sorts and merges the dimensions so that dst's innermost stride is the smallest.
// Three loop nests follow: (1) both innermost strides are 1: rows are contiguous; (2) another
// dimension has source stride 1: a transpose, walked in square tiles so that each cache line of
// both sides is used fully while it is in L1, and within them, for floating dtypes, in squares that
// registers hold; (3) anything else: a plain strided row. Cost: bytes read plus bytes written; the
// floor is the streaming copy bandwidth.
#include "cpu/simd/transpose.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kTile = 32;

FASTNN_INLINE void convert(float& y, bfloat16 x) { y = to_float(x); }
FASTNN_INLINE void convert(bfloat16& y, bfloat16 x) { y = x; }
template <class S>
FASTNN_INLINE void convert(bfloat16& y, S x) {
  y = to_bfloat16(static_cast<float>(x));
}
template <class D>
FASTNN_INLINE void convert(D& y, bfloat16 x) {
  y = static_cast<D>(to_float(x));
}
template <class D, class S>
FASTNN_INLINE void convert(D& y, S x) {
  y = static_cast<D>(x);
}
FASTNN_INLINE void convert(bool& y, bfloat16 x) { y = to_float(x) != 0.0f; }
template <class S>
FASTNN_INLINE void convert(bool& y, S x) {
  y = x != 0;
}

template <class D, class S>
FASTNN_INLINE void copy_row(D* dst, int64_t to, const S* src, int64_t from, int64_t n) {
  if (to == 1 && from == 1) {
    for (int64_t i = 0; i < n; ++i) convert(dst[i], src[i]);
  } else if (to == 1 && from == 0) {
    D value;
    convert(value, *src);
    for (int64_t i = 0; i < n; ++i) dst[i] = value;
  } else {
    for (int64_t i = 0; i < n; ++i) convert(dst[i * to], src[i * from]);
  }
}

// dst[i * dst_row + j] = src[i + j * src_col] over `rows` x `columns`, each at most LANES.
template <class D, class S>
FASTNN_INLINE void turn_square(D* dst, int64_t dst_row, const S* src, int64_t src_col, int rows,
                               int columns) {
  vfloat square[LANES];
#pragma GCC unroll 16
  for (int j = 0; j < LANES; ++j)
    square[j] = j < columns ? load_any(src + j * src_col, rows) : vfloat{};
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (i >= rows) break;
    if constexpr (sizeof(D) == 2 && sizeof(S) == 2) {  // as it is: rounding would change NaNs
      store_halves_n(dst + i * dst_row, to_halves(as_uint(square[i]) >> 16), columns);
    } else {
      store_any(dst + i * dst_row, square[i], columns);
    }
  }
}

// n bytes, as blocks of which the last two may overlap.
template <int B>
FASTNN_INLINE bool copy_blocks(char* dst, const char* src, int64_t n) {
  if (n < B) return false;
  for (int64_t i = 0; i + B < n; i += B) __builtin_memcpy(dst + i, src + i, B);
  __builtin_memcpy(dst + n - B, src + n - B, B);
  return true;
}
FASTNN_INLINE void copy_bytes(char* dst, const char* src, int64_t n) {
  if (copy_blocks<64>(dst, src, n) || copy_blocks<32>(dst, src, n) ||
      copy_blocks<16>(dst, src, n) || copy_blocks<8>(dst, src, n) || copy_blocks<4>(dst, src, n))
    return;
  for (int64_t i = 0; i < n; ++i) dst[i] = src[i];
}

// dst[i][j] = src[i][j] over rows x columns, in tiles.
template <class D, class S>
void copy_tiles(D* dst, int64_t dst_row, int64_t dst_col, const S* src, int64_t src_row,
                int64_t src_col, int64_t rows, int64_t columns) {
  if (src_row == 0 && dst_col == 1 && dst_row == columns && rows > 1) {
    // One row throughout: once, and then as much as there is already, up to a share of L1.
    copy_tiles(dst, dst_row, dst_col, src, src_row, src_col, 1, columns);
    constexpr int64_t kEnough = 8192 / sizeof(D);
    for (int64_t done = columns, period = columns, more; done < rows * columns; done += more) {
      more = period < rows * columns - done ? period : rows * columns - done;
      __builtin_memcpy(dst + done, dst, sizeof(D) * static_cast<size_t>(more));
      if (period < kEnough) period = done + more;
    }
    return;
  }
  if constexpr (kSame<D, S>)
    if (dst_col == 1 && src_col == 1) {
      for (int64_t i = 0; i < rows; ++i)
        copy_bytes(reinterpret_cast<char*>(dst + i * dst_row),
                   reinterpret_cast<const char*>(src + i * src_row), columns * int64_t{sizeof(D)});
      return;
    }
  if constexpr (kFloating<D> && kFloating<S> && !kSame<D, S>)
    if (dst_col == 1 && src_col == 1) {
      for (int64_t i = 0; i < rows; ++i)
        vector_loop(0, columns, [&](int64_t j, int n) FASTNN_INLINED {
          store_any(dst + i * dst_row + j, load_any(src + i * src_row + j, n), n);
        });
      return;
    }
  for (int64_t i0 = 0; i0 < rows; i0 += kTile)
    for (int64_t j0 = 0; j0 < columns; j0 += kTile) {
      const int64_t i1 = i0 + kTile < rows ? i0 + kTile : rows;
      const int64_t j1 = j0 + kTile < columns ? j0 + kTile : columns;
      if constexpr (kFloating<D> && kFloating<S>)
        if (dst_col == 1 && src_row == 1) {
          vector_loop(i0, i1, [&](int64_t i, int m) {
            vector_loop(j0, j1, [&](int64_t j, int n) {
              turn_square(dst + i * dst_row + j, dst_row, src + i + j * src_col, src_col, m, n);
            });
          });
          continue;
        }
      for (int64_t i = i0; i < i1; ++i)
        copy_row(dst + i * dst_row + j0 * dst_col, dst_col, src + i * src_row + j0 * src_col,
                 src_col, j1 - j0);
    }
}

template <class D, class S>
void copy_typed(const CopyParams& p) {
  D* const dst = static_cast<D*>(p.dst);
  const S* const src = static_cast<const S*>(p.src);
  if (p.rank == 0) return convert(*dst, *src);
  if (p.rank == 1) {
    parallel_ranges(p.shape[0], kGrain, [&](int64_t begin, int64_t end) {
      copy_row(dst + begin * p.dst_strides[0], p.dst_strides[0], src + begin * p.src_strides[0],
               p.src_strides[0], end - begin);
    });
    return;
  }
  // The row dimension is the one whose source stride is smallest, the last one apart; the others
  // form the outer loop.
  const int column = p.rank - 1;
  int row = column - 1;
  for (int i = 0; i < column; ++i) {
    const int64_t a = p.src_strides[i] < 0 ? -p.src_strides[i] : p.src_strides[i];
    const int64_t b = p.src_strides[row] < 0 ? -p.src_strides[row] : p.src_strides[row];
    if (a < b) row = i;
  }
  int64_t outer = 1;
  for (int i = 0; i < column; ++i)
    if (i != row) outer *= p.shape[i];
  const int64_t rows = p.shape[row], columns = p.shape[column];
  // Chunks: whole outer indices, each cut into blocks of rows where they are large; a row takes as
  // long as a vector at least.
  const int64_t width = columns > LANES ? columns : LANES;
  int64_t row_block = kGrain / width;
  row_block = row_block < kTile ? kTile : (row_block > rows ? rows : row_block);
  const int64_t blocks = (rows + row_block - 1) / row_block;
  const int64_t per_chunk = rows * width >= kGrain ? 1 : kGrain / (rows * width + 1) + 1;
  parallel_ranges(outer * blocks, per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t rest = task / blocks;
      const int64_t first = task % blocks * row_block;
      const int64_t last = first + row_block < rows ? first + row_block : rows;
      int64_t to = first * p.dst_strides[row], from = first * p.src_strides[row];
      for (int i = column - 1; i >= 0; --i) {
        if (i == row) continue;
        const int64_t index = rest % p.shape[i];
        rest /= p.shape[i];
        to += index * p.dst_strides[i];
        from += index * p.src_strides[i];
      }
      copy_tiles(dst + to, p.dst_strides[row], p.dst_strides[column], src + from,
                 p.src_strides[row], p.src_strides[column], last - first, columns);
    }
  });
}

template <class D>
void copy_to(const CopyParams& p) {
  switch (p.src_dtype) {
    case DType::float32:
      return copy_typed<D, float>(p);
    case DType::bfloat16:
      return copy_typed<D, bfloat16>(p);
    case DType::int64:
      return copy_typed<D, int64_t>(p);
    case DType::int32:
      return copy_typed<D, int32_t>(p);
    case DType::uint8:
      return copy_typed<D, uint8_t>(p);
    case DType::boolean:
      return copy_typed<D, bool>(p);
  }
}

void strided(const CopyParams& p) {
  switch (p.dst_dtype) {
    case DType::float32:
      return copy_to<float>(p);
    case DType::bfloat16:
      return copy_to<bfloat16>(p);
    case DType::int64:
      return copy_to<int64_t>(p);
    case DType::int32:
      return copy_to<int32_t>(p);
    case DType::uint8:
      return copy_to<uint8_t>(p);
    case DType::boolean:
      return copy_to<bool>(p);
  }
}

// A few rows at a time, part after part: their lines are still in L1 when the next part comes.
void join(const RowPart* parts, int64_t count, int64_t rows, char* dst, int64_t dst_step) {
  const int64_t some = ceil_div(4096, dst_step);
  parallel_ranges(rows, ceil_div(kGrain, dst_step), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += some) {
      const int64_t last = first + some < end ? first + some : end;
      for (int64_t i = 0; i < count; ++i) {
        const RowPart part = parts[i];
        for (int64_t row = first; row < last; ++row)
          copy_bytes(dst + row * dst_step + part.place, part.src + row * part.src_step, part.bytes);
      }
    }
  });
}

template <class T>
void add_into(T* dst, const T* src, int64_t count) {
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      store_any(dst + i, load_any(dst + i, n) + load_any(src + i, n), n);
    });
  });
}

template <class T>
void fill_with(void* dst, int64_t count, uint64_t bits) {
  T* const to = static_cast<T*>(dst);
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = static_cast<T>(bits);
  });
}

void fill(void* dst, int64_t count, int64_t item_size, uint64_t bits) {
  if (item_size == 8) return fill_with<uint64_t>(dst, count, bits);
  if (item_size == 4) return fill_with<uint32_t>(dst, count, bits);
  if (item_size == 2) return fill_with<uint16_t>(dst, count, bits);
  fill_with<uint8_t>(dst, count, bits);
}

}  // namespace

void fill_copy(Slots& slots) {
  slots.copy.strided = strided;
  slots.copy.join = join;
  slots.copy.add_into = add_into<float>;
  slots.copy.add_into_bf16 = add_into<bfloat16>;
  slots.copy.fill = fill;
}

}  // namespace fastnn::cpu::FASTNN_ISA
