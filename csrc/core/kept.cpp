#include "core/kept.h"

#include "core/allocator.h"

namespace fastnn {

// The graph that this thread is recording on a device.
static const void* recording_on(int device) {
  return device == kCpu ? nullptr : device_table()->recording();
}

KeptBlock::KeptBlock(int64_t size, int on)
    : device(on),
      bytes(size),
      recording(recording_on(on)),
      data(on == kCpu ? allocate(size) : device_table()->allocate(on, size)) {
  if (!data) check_device();
}
KeptBlock::~KeptBlock() {
  if (device == kCpu)
    deallocate(data, bytes);
  else if (data)
    device_table()->deallocate(device, data, bytes);
}

void KeptWorkspaces::check_version(int64_t version) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (version != version_) blocks_.clear();
  version_ = version;
}

void KeptWorkspaces::clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_.clear();
}

std::shared_ptr<KeptBlock> KeptWorkspaces::find(uint64_t key) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = blocks_.find(key);
  if (found == blocks_.end() || found->second->recording != recording_on(found->second->device))
    return nullptr;
  return found->second;
}

int64_t KeptWorkspaces::count() {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(blocks_.size());
}

void KeptWorkspaces::keep(uint64_t key, std::shared_ptr<KeptBlock> block) {
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_.emplace(key, std::move(block));
}

KeptWorkspace::KeptWorkspace(KeptWorkspaces* kept, uint64_t key, int64_t bytes)
    : kept_(kept), block_(nullptr), bytes_(bytes), key_(key), filled_(false) {
  if (!kept) {
    data_ = push_scratch(bytes);
    return;
  }
  std::shared_ptr<KeptBlock> block = kept->find(key);
  filled_ = block != nullptr;
  if (!filled_) block = std::make_shared<KeptBlock>(bytes);
  data_ = block->data;
  block_ = new std::shared_ptr<KeptBlock>(std::move(block));
}

KeptWorkspace::~KeptWorkspace() {
  if (!block_) {
    pop_scratch(data_, bytes_);
    return;
  }
  auto* const block = static_cast<std::shared_ptr<KeptBlock>*>(block_);
  if (!filled_) kept_->keep(key_, *block);
  delete block;
}

}  // namespace fastnn
