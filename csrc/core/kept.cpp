#include "core/kept.h"

#include "core/allocator.h"

namespace fastnn {

KeptBlock::KeptBlock(int64_t size) : data(allocate(size)), bytes(size) {}
KeptBlock::~KeptBlock() { deallocate(data, bytes); }

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
  return found == blocks_.end() ? nullptr : found->second;
}

void KeptWorkspaces::keep(uint64_t key, std::shared_ptr<KeptBlock> block) {
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_.emplace(key, std::move(block));
}

KeptWorkspace::KeptWorkspace(KeptWorkspaces* kept, uint64_t key, int64_t bytes)
    : kept_(kept), key_(key) {
  std::shared_ptr<KeptBlock> block = kept ? kept->find(key) : nullptr;
  filled_ = block != nullptr;
  if (!filled_) block = std::make_shared<KeptBlock>(bytes);
  data_ = block->data;
  block_ = new std::shared_ptr<KeptBlock>(std::move(block));
}

KeptWorkspace::~KeptWorkspace() {
  auto* const block = static_cast<std::shared_ptr<KeptBlock>*>(block_);
  if (kept_ && !filled_) kept_->keep(key_, *block);
  delete block;
}

}  // namespace fastnn
