// The product of two tiles in shared memory, for all convolutions and matrix products.
//
// A block computes kRows x kColumns outputs, each warp kWarpRows x kWarpColumns of them, from
// stages of kDepth terms: 64 bytes of each row, or of each column, of the operands. Outputs lie in
// registers as the tensor cores leave them, in pieces of 16 x 8 (device/ptx.h), also where there
// are none: with Math::exact each thread multiplies its own outputs in float32. Lines in shared
// memory are padded by 16 bytes, turned ones of float32 by 32: then the eight rows of a matrix
// load, and the 32 words of a plain one, fall into different banks (tests/emulator/banks.cu).
#pragma once

#include "cuda/device/ptx.h"

namespace fastnn::cuda {

enum class Math {
  exact,   // float32 multiply-adds
  tensor,  // tensor cores: bfloat16, or float32 rounded to TF32
};

template <class Element, Math kMath_, int kRows_, int kColumns_, int kWarpRows, int kWarpColumns>
struct Tile {
  using T = Element;
  static constexpr Math kMath = kMath_;
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kVector = 16 / sizeof(T);  // elements of one copy
  static constexpr int kDepth = 4 * kVector;
  static constexpr int kStages = 4;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kThreads = 32 * (kRows / kWarpRows) * kWarpsAcross;
  static constexpr int kPiecesDown = kWarpRows / 16, kPiecesAcross = kWarpColumns / 8;

  // The outputs of a thread: piece, then its four.
  using Sums = float[kPiecesDown][kPiecesAcross][4];

  // Where the thread's warp begins, and its place in a piece.
  struct Place {
    int row, column, g, t, lane;
    __device__ Place() {
      const int warp = static_cast<int>(threadIdx.x) / 32;
      lane = static_cast<int>(threadIdx.x) % 32;
      row = warp / kWarpsAcross * kWarpRows;
      column = warp % kWarpsAcross * kWarpColumns;
      g = lane / 4;
      t = lane % 4;
    }
  };
};

// An operand's stage in shared memory: element (row, k) of kRows rows. By rows, k runs on, as in
// pixels x channels; turned, rows run on.
template <class Tile, int kRows, bool kTurned>
struct Stage {
  using T = typename Tile::T;
  static constexpr bool turned = kTurned;
  static constexpr int kPad = (kTurned && sizeof(T) == 4 ? 2 : 1) * Tile::kVector;
  static constexpr int kStride = (kTurned ? kRows : Tile::kDepth) + kPad;
  static constexpr int kElements = kStride * (kTurned ? Tile::kDepth : kRows);
  T* data;
  FASTNN_MEMBER T* at(int row, int k) const {
    return data + (kTurned ? k * kStride + row : row * kStride + k);
  }
};

// Rounds four terms to TF32 where they lie: each thread those that it has copied, once, for two to
// four warps read them.
FASTNN_DEVICE void round_terms(float* at) {
  const auto rounded = [](uint32_t bits) {
    return to_tf32(__int_as_float(static_cast<int>(bits)));
  };
  auto* const terms = reinterpret_cast<uint4*>(at);
  const uint4 exact = *terms;
  *terms = {rounded(exact.x), rounded(exact.y), rounded(exact.z), rounded(exact.w)};
}

// sums += a b over the stage's kDepth terms. For TF32, stages by rows hold rounded terms; of turned
// ones they are rounded here.
template <class Tile, class A, class B>
FASTNN_DEVICE void multiply(const A& a, const B& b, typename Tile::Sums& sums) {
  constexpr bool turned = A::turned;
  using T = typename Tile::T;
  const typename Tile::Place at;
  constexpr int kDown = Tile::kPiecesDown, kAcross = Tile::kPiecesAcross;
  if constexpr (Tile::kMath == Math::tensor && sizeof(T) == 2) {
    static_assert(kAcross % 2 == 0, "matrices of B are loaded for two pieces at a time");
    // Which row and term of the four matrices each lane points at.
    const int eighth = at.lane % 8, odd = at.lane / 8 % 2, upper = at.lane / 16;
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += 16) {
      uint32_t x[kDown][4], y[kAcross / 2][4];
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        const int row = at.row + 16 * i;
        if constexpr (turned)
          load_matrices_transposed(x[i], a.at(row + 8 * odd, k + eighth + 8 * upper));
        else
          load_matrices(x[i], a.at(row + eighth + 8 * odd, k + 8 * upper));
      }
#pragma unroll
      for (int j = 0; j < kAcross / 2; ++j) {
        const int column = at.column + 16 * j;
        if constexpr (turned)
          load_matrices_transposed(y[j], b.at(column + 8 * upper, k + eighth + 8 * odd));
        else
          load_matrices(y[j], b.at(column + eighth + 8 * upper, k + 8 * odd));
      }
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
          mma_bf16(sums[i][j], x[i], {y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]});
    }
  } else if constexpr (Tile::kMath == Math::tensor) {
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += 8) {
      const auto term = [](const float* at) {
        return turned ? to_tf32(*at) : static_cast<uint32_t>(__float_as_int(*at));
      };
      uint32_t x[kDown][4], y[kAcross][2];
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int n = 0; n < 4; ++n)
          x[i][n] = term(a.at(at.row + 16 * i + at.g + n % 2 * 8, k + at.t + n / 2 * 4));
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
#pragma unroll
        for (int n = 0; n < 2; ++n)
          y[j][n] = term(b.at(at.column + 8 * j + at.g, k + at.t + 4 * n));
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j) mma_tf32(sums[i][j], x[i], y[j]);
    }
  } else {
#pragma unroll 2
    for (int k = 0; k < Tile::kDepth; ++k) {
      float x[kDown][2], y[kAcross][2];
#pragma unroll
      for (int i = 0; i < kDown; ++i)
        for (int n = 0; n < 2; ++n) x[i][n] = to_float(*a.at(at.row + 16 * i + at.g + 8 * n, k));
#pragma unroll
      for (int j = 0; j < kAcross; ++j)
        for (int n = 0; n < 2; ++n) y[j][n] = to_float(*b.at(at.column + 8 * j + 2 * at.t + n, k));
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
          for (int n = 0; n < 4; ++n) sums[i][j][n] += x[i][n / 2] * y[j][n % 2];
    }
  }
}

// The pipeline: load(step, stage) starts the copies of one step into a stage, kStages - 1 steps
// ahead of the product; arrived(stage) may change what this thread has copied to it.
template <class Tile, class Load, class Arrived, class Product>
FASTNN_DEVICE void pipeline(int64_t steps, const Load& load, const Arrived& arrived,
                            const Product& product) {
  const int count = static_cast<int>(steps);
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    if (s < count) load(s, s);
    commit_copies();
  }
  for (int k = 0; k < count; ++k) {
    wait_copies<Tile::kStages - 2>();
    arrived(k % Tile::kStages);
    __syncthreads();  // the step has arrived for all, and its predecessor's stage is free
    const int next = k + Tile::kStages - 1;
    if (next < count) load(next, next % Tile::kStages);
    commit_copies();
    product(k % Tile::kStages);
  }
  wait_copies<0>();
}
template <class Tile, class Load, class Product>
FASTNN_DEVICE void pipeline(int64_t steps, const Load& load, const Product& product) {
  pipeline<Tile>(steps, load, [](int) {}, product);
}

}  // namespace fastnn::cuda
