#include "ops/copy.h"

#include <algorithm>

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

// Orders dimensions by falling dst stride, drops sizes of 1, and merges neighbours that both sides
// step through without a gap. A copy between equal dense layouts becomes one dimension.
CopyParams plan(const Array& dst, const Array& src) {
  CopyParams p{src.raw(), dst.raw(), src.dtype(), dst.dtype(), 0, {}, {}, {}};
  int order[kMaxRank];
  int kept = 0;
  for (int i = 0; i < dst.rank(); ++i)
    if (dst.size(i) != 1) order[kept++] = i;
  std::stable_sort(order, order + kept, [&](int a, int b) {
    return std::abs(dst.strides()[a]) > std::abs(dst.strides()[b]);
  });
  for (int k = 0; k < kept; ++k) {
    const int64_t size = dst.size(order[k]);
    const int64_t to = dst.strides()[order[k]];
    const int64_t from = src.strides()[order[k]];
    const int last = p.rank - 1;
    if (last >= 0 && p.dst_strides[last] == to * size && p.src_strides[last] == from * size) {
      p.shape[last] *= size;
      p.dst_strides[last] = to;
      p.src_strides[last] = from;
    } else {
      p.shape[p.rank] = size;
      p.dst_strides[p.rank] = to;
      p.src_strides[p.rank] = from;
      ++p.rank;
    }
  }
  return p;
}

// The copy as rows of neighbouring elements; false if it is none, or converts.
bool as_rows(const CopyParams& p, RowPart& part, int64_t& rows, int64_t& dst_step) {
  if (p.src_dtype != p.dst_dtype || p.rank < 1 || p.rank > 2) return false;
  const int64_t item = item_size(p.dst_dtype);
  const int last = p.rank - 1;
  const bool single = last == 0 && p.dst_strides[0] != 1;  // rows of one element
  if (!single && (p.src_strides[last] != 1 || p.dst_strides[last] != 1)) return false;
  const bool one = last == 0 && !single;
  rows = one ? 1 : p.shape[0];
  dst_step = one ? 0 : p.dst_strides[0] * item;
  part.src = static_cast<const char*>(p.src);
  part.src_step = one ? 0 : p.src_strides[0] * item;
  part.bytes = (single ? 1 : p.shape[last]) * item;
  return true;
}

uint64_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

}  // namespace

// From the first byte of the elements to after the last.
static std::pair<const char*, const char*> extent(const Array& x) {
  const char* first = static_cast<const char*>(x.raw());
  const char* last = first + item_size(x.dtype());
  for (int d = 0; d < x.rank(); ++d) {
    const int64_t step = (x.size(d) - 1) * x.strides()[d] * item_size(x.dtype());
    (step < 0 ? first : last) += step;
  }
  return {first, last};
}

bool overlaps(const Array& out, const Array& x) {
  const Storage &to = *out.storage(), &from = *x.storage();
  if (&to != &from && !to.release && !from.release) return false;  // two blocks of our own
  if (out.count() == 0 || x.count() == 0) return false;
  const auto written = extent(out), read = extent(x);
  return written.first < read.second && read.first < written.second &&
         !(out.raw() == x.raw() && out.shape() == x.shape() && out.strides() == x.strides() &&
           out.dtype() == x.dtype());
}

void copy_into(const Array& dst, const Array& src) {
  check(dst.shape() == src.shape(), "copy: expected source shape ", dst.shape(), ", got ",
        src.shape());
  check(dst.storage()->writable, "copy: the destination is a view of read-only memory");
  if (dst.count() == 0) return;
  if (overlaps(dst, src)) return copy_into(dst, clone(src));
  kernels().copy.strided(plan(dst, src));
  ++dst.storage()->version;
}

Array cat(const std::vector<Array>& parts, int64_t dim) {
  check(!parts.empty(), "cat: expected at least one tensor, got none");
  Dims shape = parts.front().shape();
  const int at = static_cast<int>(dim);
  shape[at] = 0;
  for (const Array& part : parts) shape[at] += part.size(at);
  const Array out = empty(shape, parts.front().dtype());
  std::vector<RowPart> joined;
  std::vector<std::pair<Array, const Array*>> copies;
  int64_t rows = 0, dst_step = 0, begin = 0;
  bool joins = current_device() == kCpu;
  for (const Array& part : parts) {
    if (part.count() == 0) continue;
    const Array place =
        out.view(out.offset() + begin * out.strides()[at], part.shape(), out.strides());
    begin += part.size(at);
    copies.emplace_back(place, &part);
    RowPart row{};
    int64_t count = 0, step = 0;
    joins = joins && as_rows(plan(place, part), row, count, step);
    joins = joins && (joined.empty() || (count == rows && step == dst_step));
    row.place = static_cast<char*>(place.raw()) - static_cast<char*>(out.raw());
    rows = count, dst_step = step;
    joined.push_back(row);
  }
  if (joins && rows > 1)
    kernels().copy.join(joined.data(), static_cast<int64_t>(joined.size()), rows,
                        static_cast<char*>(out.raw()), dst_step);
  else
    for (const auto& [place, part] : copies) copy_into(place, *part);
  return out;
}

Array canonical(const Array& x) { return x.is_canonical() ? x : clone(x); }

Array row_major(const Array& x) {
  if (x.is_row_major()) return x;
  Array out = empty_strided(x.shape(), row_major_strides(x.shape()), x.dtype());
  copy_into(out, x);
  return out;
}

Array astype(const Array& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Array out = empty(x.shape(), dtype);
  copy_into(out, x);
  return out;
}

std::shared_ptr<KeptBlock> lowered_block(int64_t bytes) {
  auto block = std::make_shared<KeptBlock>(bytes);
  block->kept = std::make_shared<KeptWorkspaces>();
  return block;
}

Array lowered(const Array& x) {
  const bool may_keep = x.dtype() == DType::float32 && x.device() == kCpu && x.is_dense();
  KeptWorkspaces* const kept = may_keep ? kept_with(x) : nullptr;
  if (!kept) return astype(x, DType::bfloat16);
  std::shared_ptr<KeptBlock> block = kept->find(kLoweredKey);
  const bool filled = block != nullptr;
  const int64_t bytes = x.count() * item_size(DType::bfloat16);
  if (!filled) block = lowered_block(bytes);
  block->wanted = true;
  auto storage = std::make_shared<Storage>();
  storage->data = block->data;
  storage->bytes = bytes;
  storage->release = [block] {};
  storage->owners_kept = block->kept;
  const Array out(std::move(storage), 0, x.shape(), x.strides(), DType::bfloat16);
  if (!filled) {
    copy_into(out, x);
    kept->keep(kLoweredKey, block);
  }
  return out;
}

Array clone(const Array& x) {
  Array out = empty(x.shape(), x.dtype());
  copy_into(out, x);
  return out;
}

static Array filled(const Dims& shape, DType dtype, uint64_t bits) {
  Array out = empty(shape, dtype);
  if (const int64_t count = out.count())
    kernels().copy.fill(out.raw(), count, item_size(dtype), bits);
  return out;
}

Array full(const Dims& shape, double value, DType dtype) {
  const auto number = static_cast<float>(value);
  if (dtype == DType::float32) return filled(shape, dtype, bits_of(number));
  if (dtype == DType::bfloat16) return filled(shape, dtype, to_bfloat16(number).bits);
  return full_whole(shape, dtype == DType::boolean ? value != 0 : static_cast<int64_t>(value),
                    dtype);
}

Array full_whole(const Dims& shape, int64_t value, DType dtype) {
  return filled(shape, dtype, static_cast<uint64_t>(value));
}

static Array empty_pinned(const Dims& shape, const Dims& strides, DType dtype) {
  auto storage = std::make_shared<Storage>();
  const int64_t bytes = element_count(shape) * item_size(dtype);
  storage->data = device_table()->pin(bytes);
  if (!storage->data) check_devices();
  storage->bytes = bytes;
  storage->pinned = true;
  storage->release = [block = storage->data] { device_table()->unpin(block); };
  return Array(std::move(storage), 0, shape, strides, dtype);
}

Array pinned(const Array& x) {
  if (x.storage()->pinned) return x;
  check<RuntimeError>(x.device() == kCpu, "pin_memory: expected a tensor on the CPU, got one on ",
                      device_name(x.device()));
  const Array out = empty_pinned(x.shape(), canonical_strides(x.shape()), x.dtype());
  copy_into(out, x);
  return out;
}

Array to_device(const Array& x, int device, bool later) {
  if (x.device() == device) return x;
  Array source = x;
  if (!x.is_dense()) {
    const DeviceScope scope(x.device());
    source = canonical(x);
  }
  const DeviceScope scope(device);
  later = later && (source.storage()->pinned || device == kCpu);
  const Array out = later && device == kCpu ? empty_pinned(x.shape(), source.strides(), x.dtype())
                                            : empty_strided(x.shape(), source.strides(), x.dtype());
  const int64_t bytes = x.count() * item_size(x.dtype());
  if (bytes && !device_table()->copy(out.raw(), device, source.raw(), x.device(), bytes, later)) {
    const DeviceScope told(device == kCpu ? x.device() : device);
    check_device();
  }
  return out;
}

void accumulate(const Array& x, const Array& y) {
  check(x.shape() == y.shape(), "accumulate: expected shape ", x.shape(), ", got ", y.shape());
  check_floating("accumulate", "gradient", x);
  check(x.is_canonical(), "accumulate: expected a canonical destination");
  const Array addend = canonical(astype(y, x.dtype()));
  if (x.dtype() == DType::float32)
    kernels().copy.add_into(x.data<float>(), addend.data<float>(), x.count());
  else
    kernels().copy.add_into_bf16(x.data<bfloat16>(), addend.data<bfloat16>(), x.count());
  ++x.storage()->version;
}

void check_floating(const char* op, const char* argument, const Array& x) {
  check<TypeError>(is_floating(x.dtype()), op, ": ", argument,
                   " expects dtype float32 or bfloat16, got ", name_of(x.dtype()),
                   "; convert it with .to(fastnn.float32)");
}

}  // namespace fastnn::ops
