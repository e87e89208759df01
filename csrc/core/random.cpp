#include "core/random.h"

#include <cmath>
#include <mutex>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/parallel.h"
#include "core/philox.h"

namespace fastnn {
namespace {

std::mutex mutex;
RandomState shared{0, 0};
thread_local std::optional<RandomState> apart;

// What `use` makes of the state that this thread draws from.
template <class Use>
RandomState with_state(const Use& use) {
  if (apart) return use(*apart);
  std::lock_guard<std::mutex> lock(mutex);
  return use(shared);
}

constexpr int64_t kBlocksPerChunk = 4096;  // of four words

template <class Fill>
Array filled(const Dims& shape, const Fill& fill) {
  Array out = empty(shape, DType::float32);
  const RandomState draw = next_random();
  const int64_t count = out.count();
  float* y = out.data<float>();
  parallel_ranges((count + 3) / 4, kBlocksPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const Philox4 words = philox(draw.seed, draw.offset, static_cast<uint64_t>(block));
      float values[4];
      fill(words, values);
      for (int64_t lane = 0; lane < 4 && 4 * block + lane < count; ++lane)
        y[4 * block + lane] = values[lane];
    }
  });
  return out;
}

}  // namespace

void manual_seed(uint64_t seed) { set_random_state({seed, 0}); }

RandomState random_state() {
  return with_state([](const RandomState& state) { return state; });
}

void set_random_state(RandomState next) {
  with_state([=](RandomState& state) { return state = next; });
}

RandomState next_random(uint64_t draws) {
  return with_state([=](RandomState& state) {
    const RandomState current = state;
    state.offset += draws;
    return current;
  });
}

RandomState begin_random_apart() {
  apart = random_state();
  return *apart;
}

RandomState end_random_apart() {
  const RandomState last = random_state();
  apart.reset();
  return last;
}

Array random_uniform(const Dims& shape, double low, double high) {
  return filled(shape, [=](const Philox4& words, float* values) {
    for (int lane = 0; lane < 4; ++lane) {
      const double unit = (words.word[lane] >> 8) * (1.0 / 16777216.0);
      values[lane] = static_cast<float>(low + (high - low) * unit);
    }
  });
}

Array random_normal(const Dims& shape, double mean, double std) {
  return filled(shape, [=](const Philox4& words, float* values) {
    for (int lane = 0; lane < 4; lane += 2) {
      const double u = (words.word[lane] + 1.0) * (1.0 / 4294967296.0);  // (0, 1]
      const double angle = words.word[lane + 1] * (6.283185307179586 / 4294967296.0);
      const double radius = std::sqrt(-2.0 * std::log(u));
      values[lane] = static_cast<float>(mean + std * radius * std::cos(angle));
      values[lane + 1] = static_cast<float>(mean + std * radius * std::sin(angle));
    }
  });
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

}  // namespace fastnn
