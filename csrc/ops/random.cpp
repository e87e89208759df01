#include "ops/random.h"

#include <utility>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/rules/random.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

constexpr int64_t kBlocksPerChunk = 4096;  // of four words

// By a GPU's `kernel`, or rule(words, a, b, values) for every block on the host.
template <int kValues, class T, class Kernel, class Rule, class A, class B>
Array filled(Array out, Kernel RandomSlots::* kernel, const Rule& rule, A a, B b) {
  const RandomState draw = next_random();
  const int64_t count = out.count();
  T* const y = out.data<T>();
  if (current_device() != kCpu) {
    if (count) (kernels().random.*kernel)(draw, a, b, y, count);
    return out;
  }
  parallel_ranges(
      (count + kValues - 1) / kValues, kBlocksPerChunk, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          T values[kValues];
          rule(philox(draw.seed, draw.offset, static_cast<uint64_t>(block)), a, b, values);
          for (int64_t i = 0; i < kValues && kValues * block + i < count; ++i)
            y[kValues * block + i] = values[i];
        }
      });
  return out;
}

}  // namespace

Array random_uniform(const Dims& shape, double low, double high) {
  return filled<4, float>(empty(shape), &RandomSlots::uniform, uniform_rule, low, high);
}

Array random_normal(const Dims& shape, double mean, double std) {
  return filled<4, float>(empty(shape), &RandomSlots::normal, normal_rule, mean, std);
}

Array random_integers(const Dims& shape, int64_t low, int64_t high) {
  check(low < high, "randint: expected low < high, got ", low, " and ", high);
  const uint64_t range = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
  return filled<2, int64_t>(empty(shape, DType::int64), &RandomSlots::integers, integer_rule, low,
                            range);
}

Array random_permutation(int64_t n) {
  check(n >= 0, "randperm: expected n >= 0, got ", n);
  Array out = empty({n}, DType::int64);
  const RandomState draw = next_random();
  int64_t* y = out.data<int64_t>();
  for (int64_t i = 0; i < n; ++i) y[i] = i;
  for (int64_t i = n - 1; i > 0; --i) {
    const Philox4 words = philox(draw.seed, draw.offset, static_cast<uint64_t>(i));
    const uint64_t random = words.word[0] | static_cast<uint64_t>(words.word[1]) << 32;
    std::swap(y[i], y[random % static_cast<uint64_t>(i + 1)]);
  }
  return out;
}

}  // namespace fastnn::ops
