// Dropout: one read and one write per element. The mask is regenerated from its counter wherever it
// is needed, ten rounds of integer arithmetic for four elements, and is the CPU's bit for bit.
#include "core/philox.h"
#include "cuda/capture.h"
#include "cuda/device/columns.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

struct Mask {
  uint64_t seed, offset;
  const uint64_t* later;  // added to the offset, in a graph
  uint32_t threshold;
  float scale;
  __device__ Philox4 words(int64_t block) const {
    return philox(seed, later ? offset + *later : offset, static_cast<uint64_t>(block));
  }
  __device__ float applied(uint32_t word, float x) const {
    return word >= threshold ? x * scale : 0.0f;
  }
};

// Elements 4 i .. 4 i + 3; all four at once where they are aligned and there.
template <class T, bool kWhole>
struct Elements {
  const T* x;
  T* y;
  int64_t count;
  Mask mask;
  __device__ void operator()(int64_t i) const {
    const Philox4 four = mask.words(i);
    if constexpr (kWhole) {
      float v[4];
      load_floats(x + 4 * i, v);
      for (int k = 0; k < 4; ++k) v[k] = mask.applied(four.word[k], v[k]);
      store_floats(y + 4 * i, v);
    } else {
      for (int64_t k = 0; k < 4 && 4 * i + k < count; ++k)
        from_float(y[4 * i + k], mask.applied(four.word[k], to_float(x[4 * i + k])));
    }
  }
};

void elements(const void* x, void* y, int64_t count, DType dtype, uint64_t seed, uint64_t offset,
              uint32_t threshold, float scale) {
  const Mask mask{seed, offset, later_offset(), threshold, scale};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    T* const to = static_cast<T*>(y);
    if (count % 4 == 0 && aligned(from, to))
      each(count / 4, Elements<T, true>{from, to, count, mask});
    else
      each((count + 3) / 4, Elements<T, false>{from, to, count, mask});
  });
}

// One word per (image, channel): images are segments.
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
      const int64_t unit = image * body.C + c;  // N = 1, or begins a block of words
      for (int n = 0; n < N; n += 4) {
        const Philox4 four = body.mask.words((unit + n) / 4);
        for (int k = 0; k < 4 && n + k < N; ++k)
          kept[n + k] = four.word[N == 1 ? unit % 4 : k] >= body.mask.threshold;
      }
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
  const Mask mask{seed, offset, later_offset(), threshold, scale};
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
