// The connections over which a source serves the pages of a process that runs elsewhere already (post-copy),
// beside those of link.h and of the same session. The first is the urgent one: requests come over it, and
// what was asked for leaves over it, never behind anything else. Over the others the rest is pushed. Made
// before the freeze, and anew when a link broke. Threads: each connection has one; cancel() is for any.
#pragma once

#include <memory>
#include <vector>

#include "engine/migration/link.h"

namespace godwit::migration {

class ServingLink {
 public:
  /// What the two ends say in their hello, so that nobody takes such a connection for another one.
  static constexpr const char* kOption = "postcopy";

  /// More connections of the session that `link` is, or was before it broke; `pushing`: how many to push
  /// over. Errors: as Link::connect.
  static Result<std::unique_ptr<ServingLink>> connect(const LinkOptions& options, const Link& link,
                                                      size_t pushing);

  [[nodiscard]] wire::RecordReader& requests() { return *ends_.front().reader; }
  [[nodiscard]] wire::RecordWriter& urgent() { return *ends_.front().writer; }
  [[nodiscard]] size_t pushing() const { return ends_.size() - 1; }
  [[nodiscard]] wire::RecordWriter& push(size_t index) { return *ends_[index + 1].writer; }
  [[nodiscard]] bool is_peer_behind(size_t index) { return channels_[index + 1]->is_peer_behind(); }

  /// Of what is pushed; who waits for a page is not held up.
  void set_bandwidth(uint64_t bytes_per_second) { limiter_->set_rate(bytes_per_second); }
  [[nodiscard]] uint64_t bytes_sent() const;
  /// The last word on all of them.
  void finish();
  void cancel();

 private:
  ServingLink() = default;
  Status greet(size_t index, const LinkOptions& options, const Link& link, const wire::StreamHeader& header);

  std::vector<std::unique_ptr<transport::Channel>> channels_;
  std::vector<LinkEnd> ends_;
  std::shared_ptr<transport::RateLimiter> limiter_ = std::make_shared<transport::RateLimiter>();
};

}  // namespace godwit::migration
