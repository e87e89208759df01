#include "ops/dropout.h"

#include "core/error.h"
#include "core/philox.h"
#include "ops/slots.h"

namespace fastnn::ops {

Array dropout(const std::string& kind, const Array& input, double p, uint64_t seed,
              uint64_t offset) {
  check_floating(kind.c_str(), "input", input);
  check(p >= 0 && p <= 1, kind, ": p expects a probability from 0 to 1, got ", p);
  check(kind != "dropout2d" || input.rank() == 4, kind, ": input expects shape (N, C, H, W), got ",
        input.shape());
  check(kind != "drop_path" || input.rank() >= 1, kind,
        ": input expects a batch dimension, got a scalar");
  const Array x = canonical(input);
  const uint32_t threshold = drop_threshold(p);
  if (threshold == kDropAll) return full(x.shape(), 0, x.dtype());
  Array y = empty(x.shape(), x.dtype());
  if (x.count() == 0) return y;
  const auto scale = static_cast<float>(kDropAll) / static_cast<float>(kDropAll - threshold);
  if (kind == "dropout") {
    kernels().dropout.elements(x.raw(), y.raw(), x.count(), x.dtype(), seed, offset, threshold,
                               scale);
  } else {
    const int64_t N = x.size(0), C = kind == "dropout2d" ? x.size(1) : 1;
    kernels().dropout.units(x.raw(), y.raw(), N, x.count() / (N * C), C, x.dtype(), seed, offset,
                            threshold, scale);
  }
  return y;
}

}  // namespace fastnn::ops
