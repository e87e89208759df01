#include "core/array.h"

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "core/allocator.h"
#include "core/error.h"

namespace fastnn {

Dims::Dims(std::initializer_list<int64_t> values) {
  for (int64_t value : values) push_back(value);
}

Dims::Dims(int rank, int64_t fill) {
  for (int i = 0; i < rank; ++i) push_back(fill);
}

void Dims::push_back(int64_t value) {
  check(rank_ < kMaxRank, "expected at most ", kMaxRank, " dimensions, got more");
  values_[rank_++] = value;
}

bool Dims::operator==(const Dims& other) const {
  return rank_ == other.rank_ && std::equal(begin(), end(), other.begin());
}

std::ostream& operator<<(std::ostream& out, const Dims& dims) {
  out << "(";
  for (int i = 0; i < dims.rank_; ++i) out << (i ? ", " : "") << dims.values_[i];
  return out << (dims.rank_ == 1 ? ",)" : ")");
}

int64_t element_count(const Dims& shape) {
  int64_t count = 1;
  bool zero = false;
  for (int64_t size : shape) {
    check(size >= 0, "expected sizes >= 0, got shape ", shape);
    zero = zero || size == 0;
  }
  if (zero) return 0;
  for (int64_t size : shape) {
    check<MemoryError>(size <= (int64_t{1} << 59) / count, "cannot allocate a tensor of shape ",
                       shape, ": its size exceeds 2^59 elements");
    count *= size;
  }
  return count;
}

Dims row_major_strides(const Dims& shape) {
  Dims strides(shape.rank(), 1);
  for (int i = shape.rank() - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * std::max<int64_t>(shape[i + 1], 1);
  return strides;
}

Dims canonical_strides(const Dims& shape) {
  if (shape.rank() != 4) return row_major_strides(shape);
  const int64_t c = std::max<int64_t>(shape[1], 1);
  const int64_t h = std::max<int64_t>(shape[2], 1);
  const int64_t w = std::max<int64_t>(shape[3], 1);
  return {h * w * c, 1, w * c, c};
}

Storage::~Storage() {
  if (release) {
    release();
  } else if (data && device == kCpu) {
    deallocate(data, bytes);
  } else if (data) {
    if (exposed.load() > 0) device_table()->wait(device);
    device_table()->deallocate(device, data, bytes);
  }
}

int64_t Array::count() const {
  int64_t count = 1;
  for (int64_t size : shape_) count *= size;
  return count;
}

bool Array::has_strides(const Dims& strides) const {
  if (count() == 0) return true;
  for (int i = 0; i < rank(); ++i)
    if (shape_[i] != 1 && strides_[i] != strides[i]) return false;
  return true;
}

bool Array::is_dense() const {
  int order[kMaxRank];
  int kept = 0;
  for (int i = 0; i < rank(); ++i) {
    if (shape_[i] == 0) return true;
    if (shape_[i] != 1) order[kept++] = i;
  }
  std::stable_sort(order, order + kept, [&](int a, int b) { return strides_[a] < strides_[b]; });
  int64_t expected = 1;
  for (int i = 0; i < kept; ++i) {
    if (strides_[order[i]] != expected) return false;
    expected *= shape_[order[i]];
  }
  return true;
}

bool Array::overlaps_itself() const {
  if (count() == 0) return false;
  std::vector<std::pair<int64_t, int64_t>> steps;  // |stride|, size
  for (int i = 0; i < rank(); ++i)
    if (shape_[i] > 1) steps.push_back({std::abs(strides_[i]), shape_[i]});
  std::sort(steps.begin(), steps.end());
  int64_t extent = 0;
  for (const auto& [step, size] : steps) {
    if (step <= extent) return true;
    extent += step * (size - 1);
  }
  return false;
}

Array empty_strided(const Dims& shape, const Dims& strides, DType dtype) {
  const int64_t bytes = element_count(shape) * item_size(dtype);
  auto storage = std::make_shared<Storage>();
  storage->device = current_device();
  storage->bytes = bytes;
  if (storage->device == kCpu)
    storage->data = allocate(bytes);
  else
    storage->data = device_table()->allocate(storage->device, bytes);
  if (!storage->data) check_device();
  if (storage->device != kCpu && device_table()->recording())
    device_table()->keep(storage->data, storage, &storage->version);
  return Array(std::move(storage), 0, shape, strides, dtype);
}

Array empty(const Dims& shape, DType dtype) {
  element_count(shape);  // before strides, which multiply the sizes
  return empty_strided(shape, canonical_strides(shape), dtype);
}

KeptWorkspaces* kept_with(const Array& x) {
  if (x.offset() != 0 || x.count() * item_size(x.dtype()) != x.storage()->bytes ||
      x.storage()->exposed.load() > 0)
    return nullptr;
  if (x.storage()->owners_kept) return x.storage()->owners_kept.get();
  x.storage()->kept.check_version(x.storage()->version.load());
  return &x.storage()->kept;
}

}  // namespace fastnn
