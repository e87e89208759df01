// Copies between layouts and dtypes, fills, and sums of gradients.
//
// A copy whose innermost steps are 1 on both sides moves packs of up to 16 bytes; a transposition
// (one side runs along another dimension) goes through a tile in shared memory, so that both sides
// are read and written in whole lines; all else goes element by element.
// Floor: one read and one write of the data.
#include "cuda/copy.h"

#include "cuda/device/packs.h"
#include "cuda/device/transpose.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

template <class D, class S>
FASTNN_DEVICE D converted(S x) {
  if constexpr (std::is_same_v<D, bool>) {
    if constexpr (std::is_same_v<S, bfloat16>)
      return to_float(x) != 0.0f;
    else
      return x != S{};
  } else if constexpr (std::is_same_v<D, S>) {
    return x;
  } else if constexpr (std::is_same_v<D, bfloat16>) {
    return to_bfloat16(static_cast<float>(x));
  } else if constexpr (std::is_same_v<S, bfloat16>) {
    return static_cast<D>(to_float(x));
  } else {
    return static_cast<D>(x);
  }
}

template <class D, class S>
struct DenseCopy {
  D* dst;
  const S* src;
  __device__ void operator()(int64_t i) const { dst[i] = converted<D>(src[i]); }
};

// Both sides dense, N elements at a time.
template <class D, class S, int N>
struct PackedCopy {
  D* dst;
  const S* src;
  __device__ void operator()(int64_t i) const {
    const auto in = reinterpret_cast<const Pack<S, N>*>(src)[i];
    Pack<D, N> out;
    if constexpr (std::is_same_v<D, bfloat16> && std::is_same_v<S, float>)
      out = to_pack<D>(in.at);
    else
      for (int k = 0; k < N; ++k) out.at[k] = converted<D>(in.at[k]);
    reinterpret_cast<Pack<D, N>*>(dst)[i] = out;
  }
};

struct Layout {
  int rank;
  int64_t shape[kMaxRank], src[kMaxRank], dst[kMaxRank];
};

template <class D, class S>
struct StridedCopy {
  D* dst;
  const S* src;
  Layout at;
  __device__ void operator()(int64_t i) const {
    int64_t from = 0, to = 0;
    for (int d = at.rank - 1; d >= 0; --d) {
      const int64_t index = take_index(i, at.shape, d);
      from += index * at.src[d];
      to += index * at.dst[d];
    }
    dst[to] = converted<D>(src[from]);
  }
};

// matrices x rows x columns: dst runs along columns, src along rows.
template <class D, class S>
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(D* dst, const S* src, int64_t rows, int64_t columns, int64_t src_matrix,
                     int64_t src_column, int64_t dst_matrix, int64_t dst_row,
                     int64_t column_tiles) {
  const int64_t row0 = blockIdx.x / column_tiles * kTurnedTile,
                column0 = blockIdx.x % column_tiles * kTurnedTile;
  src += blockIdx.y * src_matrix;
  dst += blockIdx.y * dst_matrix;
  turn_tile<D>(
      [&](int j, int lane) {
        const int64_t row = row0 + lane, column = column0 + j;
        return row < rows && column < columns ? converted<D>(src[row + column * src_column]) : D{};
      },
      [&](int j, int lane, D value) {
        const int64_t row = row0 + j, column = column0 + lane;
        if (row < rows && column < columns) dst[row * dst_row + column] = value;
      });
}

template <class D, class S>
void copy_typed(const CopyParams& p) {
  D* const dst = static_cast<D*>(p.dst);
  const S* const src = static_cast<const S*>(p.src);
  int64_t count = 1;
  for (int d = 0; d < p.rank; ++d) count *= p.shape[d];
  const bool dense = p.rank == 0 || (p.rank == 1 && p.src_strides[0] == 1 && p.dst_strides[0] == 1);
  if (dense) {
    constexpr int N = 16 / (sizeof(D) > sizeof(S) ? sizeof(D) : sizeof(S));
    const int64_t packs = aligned(dst, src) ? count / N : 0;
    each(packs, PackedCopy<D, S, N>{dst, src});
    each(count - packs * N, DenseCopy<D, S>{dst + packs * N, src + packs * N});
    return;
  }
  const int last = p.rank - 1;
  const bool turned = p.rank >= 2 && p.rank <= 3 && p.dst_strides[last] == 1 &&
                      p.src_strides[last - 1] == 1 && p.src_strides[last] != 1;
  const int64_t matrices = p.rank == 3 ? p.shape[0] : 1;
  if (turned && matrices <= 65535) {
    const int64_t rows = p.shape[last - 1], columns = p.shape[last];
    const int64_t down = (rows + kTurnedTile - 1) / kTurnedTile,
                  across = (columns + kTurnedTile - 1) / kTurnedTile;
    if (down * across <= 0x7fffffff) {
      launch(transpose_kernel<D, S>,
             dim3(static_cast<unsigned>(down * across), static_cast<unsigned>(matrices)), kThreads,
             0, dst, src, rows, columns, p.rank == 3 ? p.src_strides[0] : 0, p.src_strides[last],
             p.rank == 3 ? p.dst_strides[0] : 0, p.dst_strides[last - 1], across);
      return;
    }
  }
  Layout at{p.rank, {}, {}, {}};
  for (int d = 0; d < p.rank; ++d) {
    at.shape[d] = p.shape[d];
    at.src[d] = p.src_strides[d];
    at.dst[d] = p.dst_strides[d];
  }
  each(count, StridedCopy<D, S>{dst, src, at});
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

template <class T, int N>
struct AddInto {
  T* dst;
  const T* src;
  __device__ void operator()(int64_t i) const {
    float x[N], y[N];
    load_floats(dst + i * N, x);
    load_floats(src + i * N, y);
    for (int k = 0; k < N; ++k) x[k] += y[k];
    store_floats(dst + i * N, x);
  }
};

template <class T>
void add_into(T* dst, const T* src, int64_t count) {
  constexpr int N = kPack<T>;
  const int64_t packs = aligned(dst, src) ? count / N : 0;
  each(packs, AddInto<T, N>{dst, src});
  each(count - packs * N, AddInto<T, 1>{dst + packs * N, src + packs * N});
}

template <class T>
struct Fill {
  T* dst;
  T value;
  __device__ void operator()(int64_t i) const { dst[i] = value; }
};

template <class T>
void fill_with(void* dst, int64_t count, uint64_t bits) {
  each(count, Fill<T>{static_cast<T*>(dst), static_cast<T>(bits)});
}

void fill(void* dst, int64_t count, int64_t item_size, uint64_t bits) {
  if (item_size == 8) return fill_with<uint64_t>(dst, count, bits);
  if (item_size == 4) return fill_with<uint32_t>(dst, count, bits);
  if (item_size == 2) return fill_with<uint16_t>(dst, count, bits);
  fill_with<uint8_t>(dst, count, bits);
}

}  // namespace

void transpose(const void* src, int64_t matrices, int64_t rows, int64_t columns, DType dtype,
               void* dst) {
  strided({src,
           dst,
           dtype,
           dtype,
           3,
           {matrices, columns, rows},
           {rows * columns, 1, columns},
           {rows * columns, rows, 1}});
}

void fill_copy(Slots& slots) {
  slots.copy.strided = strided;
  slots.copy.add_into = add_into<float>;
  slots.copy.add_into_bf16 = add_into<bfloat16>;
  slots.copy.fill = fill;
}

}  // namespace fastnn::cuda
