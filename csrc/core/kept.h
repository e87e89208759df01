// Workspaces that stay with a storage (allocator.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "core/device.h"

namespace fastnn {

class KeptWorkspaces;

struct KeptBlock {
  explicit KeptBlock(int64_t size, int on = kCpu);
  ~KeptBlock();
  int device;
  int64_t bytes;
  const void* recording;           // the device's graph that fills it, or null
  std::atomic<bool> wanted{true};  // since an optimizer wrote it last (ops/copy.h: lowered)
  void* data;
  std::shared_ptr<KeptWorkspaces> kept;  // computed from this one
};

class KeptWorkspaces {
 public:
  // Forgets everything if the storage has changed since.
  void check_version(int64_t version);
  // What a graph fills is found while that graph is recorded, and what none fills outside of any:
  // a replay must not go by contents from before it.
  std::shared_ptr<KeptBlock> find(uint64_t key);
  void keep(uint64_t key, std::shared_ptr<KeptBlock> block);
  int64_t count();
  // Forgets everything.
  void clear();

 private:
  std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<KeptBlock>> blocks_;
  int64_t version_ = 0;
};

}  // namespace fastnn
