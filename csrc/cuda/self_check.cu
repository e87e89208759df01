#include "cuda/self_check.h"

#include <cmath>

#include "cuda/device/ptx.h"

namespace fastnn::cuda {
namespace {

constexpr int kMost = 384;  // results of a block
constexpr int kLanes = 32;  // a block is a warp

// Operand i, from the upper half of a linear congruence: -127 to 127 sixteenths, which bfloat16 and
// TF32 hold. No two rows or columns of a matrix are alike, so none can stand for another.
__host__ __device__ constexpr float operand(uint32_t i) {
  return static_cast<float>(static_cast<int>(((i * 1103515245u + 12345u) >> 16) % 255) - 127) /
         16.0f;
}
// B's operands are those from here on.
constexpr uint32_t kSecond = 1000;

// Numbers between those that have 10 bits of fraction, some halfway, up to where 2 is next.
__host__ __device__ constexpr float between(int i) {
  return (i % 2 ? -1.0f : 1.0f) * (1.0f + static_cast<float>(i * 129 % 8192) / 8192.0f);
}

// Numbers between those that have 7, in another step above 2.
__host__ __device__ constexpr float first_of(int i) {
  return 1.0f + static_cast<float>(i) / 512.0f;
}
__host__ __device__ constexpr float second_of(int i) {
  return -2.0f - static_cast<float>(i) / 256.0f;
}

FASTNN_DEVICE int lane_of() { return static_cast<int>(threadIdx.x); }
FASTNN_DEVICE float as_float(uint32_t bits) { return __int_as_float(static_cast<int>(bits)); }
// Of a pair of bfloat16.
FASTNN_DEVICE float first_half(uint32_t pair) { return as_float(pair << 16); }
FASTNN_DEVICE float second_half(uint32_t pair) { return as_float(pair & 0xffff0000u); }

// Twice a (16 x 16) times b (16 x 8), b stored by columns; by matrix loads. To `loaded`, what each
// lane got of a.
template <bool kTransposed>
FASTNN_DEVICE void multiply_bf16(float* y, float* loaded) {
  using A = bfloat16[16 * 16];
  using B = bfloat16[8 * 16];
  FASTNN_SHARED(A, a);
  FASTNN_SHARED(B, b);
  const int lane = lane_of();
  for (int i = lane; i < 256; i += kLanes) {
    const int row = i / 16, k = i % 16;
    a[kTransposed ? k * 16 + row : i] = to_bfloat16(operand(static_cast<uint32_t>(i)));
  }
  for (int i = lane; i < 128; i += kLanes) {
    const int column = i / 16, k = i % 16;
    b[kTransposed ? k * 8 + column : i] = to_bfloat16(operand(kSecond + static_cast<uint32_t>(i)));
  }
  __syncthreads();
  const int eighth = lane % 8, odd = lane / 8 % 2, upper = lane / 16;
  uint32_t x[4], w[4];
  if constexpr (kTransposed) {
    load_matrices_transposed(x, &a[(eighth + 8 * upper) * 16 + 8 * odd]);
    load_matrices_transposed(w, &b[(eighth + 8 * odd) * 8]);
  } else {
    load_matrices(x, &a[(eighth + 8 * odd) * 16 + 8 * upper]);
    load_matrices(w, &b[eighth * 16 + 8 * odd]);
  }
  for (int i = 0; i < 4; ++i) {
    loaded[8 * lane + 2 * i] = first_half(x[i]);
    loaded[8 * lane + 2 * i + 1] = second_half(x[i]);
  }
  float d[4] = {};
  for (int i = 0; i < 2; ++i) mma_bf16(d, x, {w[0], w[1]});
  for (int i = 0; i < 4; ++i) y[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

// Twice a (16 x 8) times b (8 x 8), b stored by columns.
FASTNN_DEVICE void multiply_tf32(float* y) {
  const int g = lane_of() / 4, t = lane_of() % 4;
  uint32_t x[4], w[2];
  for (int i = 0; i < 4; ++i)
    x[i] = to_tf32(operand(static_cast<uint32_t>((g + 8 * (i % 2)) * 8 + t + 4 * (i / 2))));
  for (int i = 0; i < 2; ++i)
    w[i] = to_tf32(operand(kSecond + static_cast<uint32_t>(g * 8 + t + 4 * i)));
  float d[4] = {};
  for (int i = 0; i < 2; ++i) mma_tf32(d, x, w);
  for (int i = 0; i < 4; ++i) y[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}

// A block each, with kMost numbers for each result.
constexpr unsigned kTensorBlocks = 4;
__global__ void tensor_cores_kernel(float* y) {
  float* const mine = y + blockIdx.x * kMost;
  switch (blockIdx.x) {
    case 0:
      multiply_bf16<false>(mine, mine + kTensorBlocks * kMost);
      break;
    case 1:
      multiply_bf16<true>(mine, mine + kTensorBlocks * kMost);
      break;
    case 2:
      multiply_tf32(mine);
      break;
    default:
      for (int i = lane_of(); i < 128; i += kLanes) mine[i] = as_float(to_tf32(between(i)));
  }
}

// Two numbers rounded, and as they were; stored at once, 16 bytes and, behind or before them, 8.
FASTNN_DEVICE void round_and_store(float* y) {
  const int i = lane_of();
  const float first = first_of(i), second = second_of(i);
  const uint32_t pair = round_two(first, second);
  const float all[4] = {first_half(pair), second_half(pair), first, second};
  store_words(y + 6 * i + 2 * (i % 2), all);
  const float two[2] = {first, second};
  store_words(y + 6 * i + 4 - 4 * (i % 2), two);
}

// Three groups of copies, waited for one after the other; every fourth is zeros.
FASTNN_DEVICE void copy_in_groups(const float* x, float* y) {
  using Buffer = float[3][128];
  FASTNN_SHARED(Buffer, buffer);
  const int lane = lane_of();
  for (int i = lane; i < kMost; i += kLanes) buffer[i / 128][i % 128] = -1e9f;
  __syncthreads();
  for (int group = 0; group < 3; ++group) {
    copy_async(&buffer[group][4 * lane], x + 128 * group + 4 * lane, lane % 4 != 3);
    commit_copies();
  }
  wait_copies<1>();
  __syncthreads();
  for (int i = lane; i < 256; i += kLanes) y[i] = buffer[i / 128][i % 128];
  wait_copies<0>();
  __syncthreads();
  for (int i = lane; i < 128; i += kLanes) y[256 + i] = buffer[2][i];
}

constexpr unsigned kBasicBlocks = 2;
__global__ void basic_kernel(const float* x, float* y) {
  if (blockIdx.x == 0)
    round_and_store(y);
  else
    copy_in_groups(x, y + kMost);
}

// Twice a b^T of the kernels' operands: products are added to what is there.
std::vector<float> product(int terms) {
  std::vector<float> d;
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int k = 0; k < terms; ++k)
        sum += operand(static_cast<uint32_t>(row * terms + k)) *
               operand(kSecond + static_cast<uint32_t>(column * terms + k));
      d.push_back(2 * sum);
    }
  return d;
}

// The elements of a in the order of lanes and their registers (device/ptx.h).
std::vector<float> fragments() {
  std::vector<float> a;
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    for (uint32_t i = 0; i < 4; ++i)
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = lane / 4 + 8 * (i % 2), k = 2 * (lane % 4) + 8 * (i / 2) + half;
        a.push_back(operand(row * 16 + k));
      }
  return a;
}

std::vector<Primitive> expected_of(Primitives which) {
  if (which == Primitives::tensor_cores) {
    std::vector<float> rounded;
    for (int i = 0; i < 128; ++i) {
      const float x = between(i), size = std::floor(std::fabs(x) * 1024.0f + 0.5f) / 1024.0f;
      rounded.push_back(x < 0 ? -size : size);
    }
    return {{"mma_bf16", {}, product(16)}, {"mma_bf16_transposed", {}, product(16)},
            {"mma_tf32", {}, product(8)},  {"to_tf32", {}, rounded},
            {"ldmatrix", {}, fragments()}, {"ldmatrix_transposed", {}, fragments()}};
  }
  std::vector<float> rounded, copied;
  for (int i = 0; i < kLanes; ++i) {
    const float first = first_of(i), second = second_of(i);
    const std::vector<float> all{std::nearbyint(first * 128) / 128,
                                 std::nearbyint(second * 64) / 64, first, second};
    if (i % 2) rounded.insert(rounded.end(), {first, second});
    rounded.insert(rounded.end(), all.begin(), all.end());
    if (i % 2 == 0) rounded.insert(rounded.end(), {first, second});
  }
  for (uint32_t i = 0; i < kMost; ++i) copied.push_back(i / 4 % 4 == 3 ? 0 : operand(i));
  return {{"round_two", {}, rounded}, {"copy_async", {}, copied}};
}

}  // namespace

std::vector<Primitive> run_primitives(cudaStream_t stream, Primitives which) {
  std::vector<Primitive> all = expected_of(which);
  std::vector<float> numbers(kMost * (1 + all.size()));  // the operands, then the results
  for (uint32_t i = 0; i < kMost; ++i) numbers[i] = operand(i);
  void* block = nullptr;
  const size_t bytes = numbers.size() * sizeof(float);
  cudaError_t result = cudaMallocAsync(&block, bytes, stream);
  if (result == cudaSuccess)
    result = cudaMemcpyAsync(block, numbers.data(), bytes, cudaMemcpyDefault, stream);
  if (result == cudaSuccess) {
    float* const x = static_cast<float*>(block);
    result = which == Primitives::tensor_cores
                 ? launch_on(stream, tensor_cores_kernel, dim3(kTensorBlocks), kLanes, 0, x + kMost)
                 : launch_on(stream, basic_kernel, dim3(kBasicBlocks), kLanes, 0, x, x + kMost);
  }
  if (result == cudaSuccess)
    result = cudaMemcpyAsync(numbers.data(), block, bytes, cudaMemcpyDefault, stream);
  if (result == cudaSuccess) result = cudaStreamSynchronize(stream);
  if (block && cudaFreeAsync(block, stream) != cudaSuccess) cudaGetLastError();
  note(result, "the self-check of this GPU's instructions");
  if (failing()) return {};
  const float* result_of = numbers.data();
  for (Primitive& p : all) {
    result_of += kMost;
    p.found.assign(result_of, result_of + p.expected.size());
  }
  return all;
}

std::string disagreeing(const std::vector<Primitive>& all) {
  std::string names;
  for (const Primitive& p : all)
    if (p.found != p.expected) names += (names.empty() ? "" : ", ") + std::string(p.name);
  return names;
}

}  // namespace fastnn::cuda
