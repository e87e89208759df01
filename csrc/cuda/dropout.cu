// Dropout: one read and one write per element. The mask is regenerated from its counter wherever it
// is needed, ten rounds of integer arithmetic for eight elements, and is the CPU's bit for bit.
#include "cuda/device/columns.h"
#include "cuda/device/random_words.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

struct Mask {
  RandomWords words;
  uint32_t threshold;
  float scale;
  __device__ float applied(uint32_t half, float x) const {
    return half >= threshold ? x * scale : 0.0f;
  }
};

// Elements 8 i .. 8 i + 7; in packs where they are aligned and there.
template <class T, bool kWhole>
struct Elements {
  const T* x;
  T* y;
  int64_t count;
  Mask mask;
  __device__ void operator()(int64_t i) const {
    const Philox4 drawn = mask.words(i);
    if constexpr (kWhole) {
      constexpr int kSome = kPack<T>;
      Pack<T, kSome> packs[8 / kSome];
      for (int part = 0; part < 8 / kSome; ++part)
        packs[part] = load_pack<kSome>(x + 8 * i + part * kSome);
      for (int part = 0; part < 8 / kSome; ++part) {
        float v[kSome];
        to_floats(packs[part], v);
        for (int k = 0; k < kSome; ++k) v[k] = mask.applied(half(drawn, part * kSome + k), v[k]);
        store_floats(y + 8 * i + part * kSome, v);
      }
    } else {
      for (int k = 0; k < 8 && 8 * i + k < count; ++k)
        from_float(y[8 * i + k], mask.applied(half(drawn, k), to_float(x[8 * i + k])));
    }
  }
};

void elements(const void* x, void* y, int64_t count, DType dtype, uint64_t seed, uint64_t offset,
              uint32_t threshold, float scale) {
  const Mask mask{{seed, offset, later_random()}, threshold, scale};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    T* const to = static_cast<T*>(y);
    if (count % 8 == 0 && aligned(from, to))
      each(count / 8, Elements<T, true>{from, to, count, mask});
    else
      each((count + 7) / 8, Elements<T, false>{from, to, count, mask});
  });
}

// One half per (image, channel): images are segments.
template <class T, int N>
struct Units {
  const T* x;
  T* y;
  int64_t C;
  Mask mask;

  struct Column : OneOperand<T, N> {
    static constexpr int kAhead = 4;
    T* y;
    float scale;
    bool kept[N];
    FASTNN_MEMBER Column(const Units& body, int64_t image, int64_t c)
        : OneOperand<T, N>{body.x}, y(body.y), scale(body.mask.scale) {
      const int64_t unit = image * body.C + c;  // a multiple of N, which divides a block's 8
      const Philox4 drawn = body.mask.words(unit / 8);
      for (int n = 0; n < N; ++n)
        kept[n] = half(drawn, static_cast<int>(unit % 8) + n) >= body.mask.threshold;
    }
    FASTNN_MEMBER void use(int64_t at, const Pack<T, N>& from) const {
      float v[N];
      to_floats(from, v);
      for (int n = 0; n < N; ++n) v[n] = kept[n] ? v[n] * scale : 0.0f;
      store_floats(y + at, v);
    }
  };
};

void units(const void* x, void* y, int64_t N, int64_t P, int64_t C, DType dtype, uint64_t seed,
           uint64_t offset, uint32_t threshold, float scale) {
  const Mask mask{{seed, offset, later_random()}, threshold, scale};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    T* const to = static_cast<T*>(y);
    with_pack<T>(
        C,
        [&](auto pack) {
          constexpr int kChannels = decltype(pack)::value;
          walk_columns<kChannels>(Units<T, kChannels>{from, to, C, mask}, N, P, C);
        },
        from, to);
  });
}

}  // namespace

void fill_dropout(Slots& slots) { slots.dropout = {elements, units}; }

}  // namespace fastnn::cuda
