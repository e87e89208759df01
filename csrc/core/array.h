// Array: a strided, typed view of shared storage. No autograd and no arithmetic: that is Python's
// Tensor and the operators in csrc/ops.
//
// Canonical layout: rank-4 arrays are logically NCHW and physically dense NHWC (channels last);
// every other rank is dense row-major. Operators return canonical arrays and kernels see only them,
// but for activations, which leave a dense array the layout that it has.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>

#include "core/device.h"
#include "core/dtype.h"
#include "core/kept.h"

namespace fastnn {

constexpr int kMaxRank = 8;

// Sizes or strides, at most kMaxRank of them.
class Dims {
 public:
  Dims() = default;
  Dims(std::initializer_list<int64_t> values);
  explicit Dims(int rank, int64_t fill = 0);
  int rank() const { return rank_; }
  int64_t& operator[](int i) { return values_[i]; }
  int64_t operator[](int i) const { return values_[i]; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + rank_; }
  void push_back(int64_t value);
  bool operator==(const Dims& other) const;
  bool operator!=(const Dims& other) const { return !(*this == other); }
  // "(8, 32, 56, 56)"
  friend std::ostream& operator<<(std::ostream& out, const Dims& dims);

 private:
  int rank_ = 0;
  int64_t values_[kMaxRank] = {};
};

// Product of sizes. Throws ValueError on a negative size, MemoryError where it exceeds 2^59: the
// bytes must fit 64 bits as well.
int64_t element_count(const Dims& shape);

Dims row_major_strides(const Dims& shape);
Dims canonical_strides(const Dims& shape);

struct Storage {
  void* data = nullptr;
  int64_t bytes = 0;
  int device = kCpu;
  std::function<void()> release;    // how a foreign owner is let go; empty for our own blocks
  std::atomic<int64_t> version{0};  // counts in-place changes
  std::atomic<int64_t> exposed{0};  // to how many who may write unnoticed
  bool writable = true;
  bool pinned = false;
  KeptWorkspaces kept;  // computed from the contents, for as long as they stay
  std::shared_ptr<KeptWorkspaces> owners_kept;  // instead, where `data` is somebody's who keeps it
  void expose() {
    ++exposed;
    kept.clear();
  }
  Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage();
};

class Array {
 public:
  Array() = default;
  Array(std::shared_ptr<Storage> storage, int64_t offset, Dims shape, Dims strides, DType dtype)
      : storage_(std::move(storage)),
        offset_(offset),
        shape_(shape),
        strides_(strides),
        dtype_(dtype) {}

  const Dims& shape() const { return shape_; }
  const Dims& strides() const { return strides_; }  // in elements
  int64_t size(int dim) const { return shape_[dim]; }
  int rank() const { return shape_.rank(); }
  int64_t count() const;
  DType dtype() const { return dtype_; }
  int device() const { return storage_->device; }
  int64_t offset() const { return offset_; }
  bool defined() const { return storage_ != nullptr; }
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  void* raw() const { return static_cast<char*>(storage_->data) + offset_ * item_size(dtype_); }
  template <class T>
  T* data() const {
    return static_cast<T*>(raw());
  }

  // Whether the elements lie densely in the given order; sizes of 1 do not matter.
  bool has_strides(const Dims& strides) const;
  bool is_row_major() const { return has_strides(row_major_strides(shape_)); }
  bool is_canonical() const { return has_strides(canonical_strides(shape_)); }
  // Whether the elements fill one block without gaps or overlap, in any order of dimensions.
  bool is_dense() const;
  // Whether two elements may be one in memory, as of an expanded array: some step is no larger than
  // the extent of the steps below it.
  bool overlaps_itself() const;

  // A view; the caller vouches that it stays inside the storage.
  Array view(int64_t offset, Dims shape, Dims strides) const {
    return Array(storage_, offset, shape, strides, dtype_);
  }

 private:
  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;
  Dims shape_, strides_;
  DType dtype_ = DType::float32;
};

// Uninitialised, canonical, on the current device.
Array empty(const Dims& shape, DType dtype = DType::float32);
// Uninitialised, with the given dense strides.
Array empty_strided(const Dims& shape, const Dims& strides, DType dtype);

// An array in the hands of somebody who may write to it without our notice, such as NumPy. What was
// computed from its contents is forgotten, and nothing kept until this is gone.
class Exposed {
 public:
  explicit Exposed(Array x) : array_(std::move(x)) { array_.storage()->expose(); }
  ~Exposed() { --array_.storage()->exposed; }
  Exposed(const Exposed&) = delete;
  Exposed& operator=(const Exposed&) = delete;
  const Array& array() const { return array_; }

 private:
  Array array_;
};

// Where kernels may keep what they compute from x, which has to be all of its storage and not
// exposed; else null.
KeptWorkspaces* kept_with(const Array& x);

}  // namespace fastnn
