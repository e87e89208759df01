// Random tensors: one write per element. A thread takes a block of four words of the generator and
// computes its values in double, a logarithm, a sine and a cosine for two normal ones.
#include "cuda/device/device.h"
#include "cuda/device/packs.h"
#include "cuda/device/random_words.h"
#include "ops/rules/random.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

struct Uniform {
  static constexpr int kValues = 4;
  double low, high;
  FASTNN_MEMBER void operator()(const Philox4& words, float* y) const {
    uniform_rule(words, low, high, y);
  }
};
struct Normal {
  static constexpr int kValues = 4;
  double mean, std;
  FASTNN_MEMBER void operator()(const Philox4& words, float* y) const {
    normal_rule(words, mean, std, y);
  }
};
struct Integers {
  static constexpr int kValues = 2;
  int64_t low;
  uint64_t range;
  FASTNN_MEMBER void operator()(const Philox4& words, int64_t* y) const {
    integer_rule(words, low, range, y);
  }
};

template <class Rule, class T>
struct Fill {
  RandomWords words;
  Rule rule;
  T* y;
  int64_t count;
  FASTNN_MEMBER void operator()(int64_t block) const {
    constexpr int kValues = Rule::kValues;
    Pack<T, kValues> pack;
    rule(words(block), pack.at);
    T* const to = y + kValues * block;
    if (kValues * (block + 1) <= count) return store_pack(to, pack);
    for (int i = 0; i < kValues; ++i)
      if (kValues * block + i < count) to[i] = pack.at[i];
  }
};
template <class Rule, class T>
void fill(const RandomState& draw, const Rule& rule, T* y, int64_t count) {
  each((count + Rule::kValues - 1) / Rule::kValues,
       Fill<Rule, T>{{draw.seed, draw.offset, later_random()}, rule, y, count});
}

void uniform(RandomState draw, double low, double high, float* y, int64_t count) {
  fill(draw, Uniform{low, high}, y, count);
}
void normal(RandomState draw, double mean, double std, float* y, int64_t count) {
  fill(draw, Normal{mean, std}, y, count);
}
void integers(RandomState draw, int64_t low, uint64_t range, int64_t* y, int64_t count) {
  fill(draw, Integers{low, range}, y, count);
}

}  // namespace

void fill_random(Slots& slots) { slots.random = {uniform, normal, integers}; }

}  // namespace fastnn::cuda
