// The encrypted half of Channel: how bytes get from Tls to the socket and back. The lock of Tls is held while
// bytes are sealed or opened, never while the socket makes somebody wait.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

#include "engine/base/units.h"
#include "engine/transport/channel.h"

namespace godwit::transport {

namespace {

/// The most that a TLS record holds. Small writes are gathered up to it; a larger span is sealed from where
/// it lies.
constexpr size_t kRecord = 16_KiB;
/// Sealed at once: the lock is held so long, and so much is then sent by one call, straight from here.
constexpr size_t kSealed = 128_KiB;
constexpr size_t kEncrypted = 256_KiB;
/// All that lies here of a peer that is not authenticated yet.
constexpr size_t kHandshakePiece = 4_KiB;

}  // namespace

Channel::~Channel() {
  if (!tls_ || stop_.load()) return;
  // A word of parting, if it needs no waiting: without it the peer takes the end for a cut.
  sealed_.clear();
  tls_->close(sealed_);
  (void)::send(socket_.get(), sealed_.data(), sealed_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

Status Channel::start_tls(std::shared_ptr<const Credentials> credentials, TlsRole role, Nanos timeout) {
  CHECK(!tls_ && ahead_begin_ == ahead_end_);
  encrypted_ = TRY(Mapping::anonymous(kEncrypted));
  auto tls = TRY(Tls::create(std::move(credentials), role, peer_name_));
  TRY(shake_hands(*tls, monotonic_now() + timeout));
  plain_.reserve(kRecord);
  tls_ = std::move(tls);
  return {};
}

Status Channel::shake_hands(Tls& tls, Nanos deadline) {
  for (bool begun = false;; begun = true) {
    if (begun || tls.role() == TlsRole::kServer) {
      const Nanos left = std::max(Nanos(0), deadline - monotonic_now());
      TRY(wait_for(socket_.get(), POLLIN, left, -1, "authenticate", peer_name_));
      unopened_ = encrypted_.span().first(TRY(receive_plain(encrypted_.span().first(kHandshakePiece), 0)));
    }
    Result<bool> done = tls.handshake(unopened_, sealed_);
    // An alert for the peer goes out too.
    Status sent = sealed_.empty() ? Status{} : sender_.write(sealed_);
    if (sent.ok()) sent = sender_.flush();
    sealed_.clear();
    if (TRY(std::move(done))) return sent;
    TRY(std::move(sent));
  }
}

Result<bool> Channel::begins_with_tls() {
  constexpr std::byte kHandshakeRecord{22};
  std::byte first{};
  TRY(receive_plain(std::span(&first, 1), MSG_PEEK));
  return first == kHandshakeRecord;
}

Status Channel::write_sealed(std::span<const std::byte> bytes) {
  if (plain_.size() + bytes.size() > kRecord) {
    TRY(seal(plain_));
    plain_.clear();
  }
  if (bytes.size() >= kRecord) return seal(bytes);
  plain_.insert(plain_.end(), bytes.begin(), bytes.end());
  return {};
}

Status Channel::flush_sealed() {
  TRY(seal(plain_));
  plain_.clear();
  TRY(send_sealed());
  return sender_.flush();
}

Status Channel::seal(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kSealed));
    TRY(tls_->seal(piece, sealed_));
    bytes = bytes.subspan(piece.size());
    if (sealed_.size() >= kSealed) TRY(send_sealed());
  }
  return {};
}

Status Channel::send_sealed() {
  TRY(sender_.write(sealed_));
  sealed_.clear();
  return {};
}

Status Channel::close_sealed() {
  tls_->close(sealed_);
  TRY(send_sealed());
  return sender_.flush();
}

/// At least one byte.
Result<size_t> Channel::receive_sealed(std::span<std::byte> into) {
  while (true) {
    if (const size_t opened = TRY(tls_->open(unopened_, into)); opened > 0) return opened;
    unopened_ = encrypted_.span().first(TRY(receive_plain(encrypted_.span(), 0)));
  }
}

}  // namespace godwit::transport
