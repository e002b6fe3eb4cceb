// The client of the demo: writes and reads back over one TCP connection to a redis without pause, checks
// every reply and remembers its longest pause. `demo_client ADDR PORT FILL_MIB`: first fills the server,
// prints "filled", then works. On each line of stdin it prints one line of JSON about the time since the last
// one; it ends when stdin does.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Tally {
  unsigned long operations = 0;
  unsigned long errors = 0;
  unsigned long wrong = 0;
  double longest_ms = 0;
  double longest_began_ms = 0;  // CLOCK_REALTIME
  std::string first_error;
};

// Any value is made from its key and version alone, so none has to be kept to check it.
std::string value_of(unsigned long key, unsigned version, size_t size) {
  std::string value = std::to_string(key) + ":" + std::to_string(version) + ":";
  unsigned long word = key * 0x9e3779b97f4a7c15UL + version;
  while (value.size() < size) {
    word ^= word << 13;
    word ^= word >> 7;
    word ^= word << 17;
    value.append(reinterpret_cast<const char*>(&word), sizeof word);
  }
  value.resize(size);
  return value;
}

void append_command(std::string& out, std::initializer_list<std::string_view> words) {
  out += "*" + std::to_string(words.size()) + "\r\n";
  for (const std::string_view word : words) {
    out += "$" + std::to_string(word.size()) + "\r\n";
    out += word;
    out += "\r\n";
  }
}

class Connection {
 public:
  bool open(const char* address, const char* port) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
    const int on = 1;
    return fd_ >= 0 && ::inet_pton(AF_INET, address, &at.sin_addr) == 1 &&
           ::connect(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0 &&
           ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0;
  }
  ~Connection() {
    if (fd_ >= 0) ::close(fd_);
  }
  Connection() = default;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  // One reply: its first line, or for a bulk string its body. False: the connection is no more.
  bool reply(std::string& out) {
    if (!line(out)) return false;
    if (out.empty() || out[0] != '$' || out == "$-1") return true;
    const auto size = std::strtoul(out.c_str() + 1, nullptr, 10);
    while (buffer_.size() - at_ < size + 2)
      if (!more()) return false;
    out.assign(buffer_, at_, size);
    at_ += size + 2;
    return true;
  }

 private:
  bool more() {
    buffer_.erase(0, at_);
    at_ = 0;
    char bytes[65536];
    const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
    if (n <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(n));
    return true;
  }
  bool line(std::string& out) {
    size_t end = 0;
    while ((end = buffer_.find("\r\n", at_)) == std::string::npos)
      if (!more()) return false;
    out.assign(buffer_, at_, end - at_);
    at_ = end + 2;
    return true;
  }

  int fd_ = -1;
  std::string buffer_;
  size_t at_ = 0;
};

constexpr size_t kValue = 16384;

// Fills in batches, so that a gigabyte takes seconds.
bool fill(Connection& server, unsigned long keys) {
  std::string batch;
  std::string answer;
  for (unsigned long key = 0; key < keys;) {
    batch.clear();
    const unsigned long end = std::min(keys, key + 64);
    for (unsigned long k = key; k < end; k++)
      append_command(batch, {"SET", "key:" + std::to_string(k), value_of(k, 0, kValue)});
    if (!server.send(batch)) return false;
    for (; key < end; key++)
      if (!server.reply(answer) || answer != "+OK") return false;
  }
  return true;
}

class Worker {
 public:
  Worker(Connection& server, unsigned long keys) : server_(server), versions_(keys) {}

  // Write one key and read it back, and read one that was written long ago.
  void step() {
    random_ = random_ * 6364136223846793005UL + 1442695040888963407UL;
    const unsigned long key = (random_ >> 20) % versions_.size();
    const unsigned long other = (random_ >> 40) % versions_.size();
    const std::string name = "key:" + std::to_string(key);
    const unsigned version = ++versions_[key];
    ask({"SET", name, value_of(key, version, kValue)}, "+OK");
    ask({"GET", name}, value_of(key, version, kValue));
    ask({"GET", "key:" + std::to_string(other)}, value_of(other, versions_[other], kValue));
  }

  bool broken() const { return broken_; }

  void report() {
    std::printf(
        "{\"operations\": %lu, \"errors\": %lu, \"wrong\": %lu, \"longest_pause_ms\": %.3f, "
        "\"longest_pause_began_ms\": %.3f, \"error\": "
        "\"%s\"}\n",
        tally_.operations, tally_.errors, tally_.wrong, tally_.longest_ms, tally_.longest_began_ms,
        tally_.first_error.c_str());
    std::fflush(stdout);
    tally_ = {};
  }

 private:
  void ask(std::initializer_list<std::string_view> words, const std::string& wanted) {
    if (broken_) return;
    request_.clear();
    append_command(request_, words);
    const auto began = Clock::now();
    if (!server_.send(request_) || !server_.reply(answer_)) {
      broken_ = true;
      tally_.errors++;
      tally_.first_error = "the connection broke";
      return;
    }
    const std::chrono::duration<double, std::milli> took = Clock::now() - began;
    if (took.count() > tally_.longest_ms) {
      tally_.longest_ms = took.count();
      const std::chrono::duration<double, std::milli> now =
          std::chrono::system_clock::now().time_since_epoch();
      tally_.longest_began_ms = now.count() - tally_.longest_ms;
    }
    tally_.operations++;
    if (answer_ != wanted) tally_.wrong++;
  }

  Connection& server_;
  std::vector<unsigned> versions_;
  unsigned long random_ = 1;
  Tally tally_;
  std::string request_;
  std::string answer_;
  bool broken_ = false;
};

int work(Worker& worker) {
  for (;;) {
    pollfd asked{STDIN_FILENO, POLLIN, 0};
    if (::poll(&asked, 1, worker.broken() ? -1 : 0) > 0) {
      char text[64];
      if (::read(STDIN_FILENO, text, sizeof text) <= 0) return 0;
      worker.report();
    }
    if (!worker.broken()) worker.step();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s ADDR PORT FILL_MIB\n", argv[0]);
    return 2;
  }
  const unsigned long keys = std::strtoul(argv[3], nullptr, 10) * (1UL << 20) / kValue;
  Connection server;
  if (keys == 0 || !server.open(argv[1], argv[2]) || !fill(server, keys)) {
    std::fprintf(stderr, "cannot fill the redis at %s:%s\n", argv[1], argv[2]);
    return 1;
  }
  std::printf("filled\n");
  std::fflush(stdout);
  Worker worker(server, keys);
  return work(worker);
}
