// Sockets: pairs with queued messages, listeners that still accept, datagrams that wait, options, TCP within
// the process.
#include "program.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

static int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  getsockopt(fd, level, name, &value, &size);
  return value;
}
static void set_option(int fd, int level, int name, int value) {
  MUST(!setsockopt(fd, level, name, &value, sizeof value));
}

// ---- pairs of each type, queued both ways; messages keep their bounds
static int pairs[3][2];
static const int kTypes[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
static const size_t kLengths[] = {100, 1, 3000};
static int pairs_buffer[3];
static void pairs_send(int type) {
  char text[3000];
  for (int side = 0; side < 2; side++)
    for (size_t i = 0; i < 3; i++) {
      fill(text, sizeof text, 50 + (uint64_t)side * 10 + i);
      MUST(send(pairs[type][side], text, kLengths[i], MSG_DONTWAIT) == (ssize_t)kLengths[i]);
    }
}
static void pairs_prepare(void) {
  for (int i = 0; i < 3; i++) {
    MUST(!socketpair(AF_UNIX, kTypes[i] | (i == 1 ? SOCK_NONBLOCK : SOCK_CLOEXEC), 0, pairs[i]));
    set_option(pairs[i][0], SOL_SOCKET, SO_SNDBUF, 100000 + i);
    pairs_buffer[i] = option(pairs[i][0], SOL_SOCKET, SO_SNDBUF);
    pairs_send(i);
  }
}
static const char* pairs_receive(int type, int side) {
  char text[3101], wanted[3000];
  size_t at = 0;
  for (size_t i = 0; i < 3; i++) {
    ssize_t got =
        recv(pairs[type][1 - side], text + at, type == 0 ? kLengths[i] : sizeof text - at, MSG_DONTWAIT);
    EXPECT(got == (ssize_t)kLengths[i], "type %d side %d message %zu: %zd bytes", type, side, i, got);
    fill(wanted, sizeof wanted, 50 + (uint64_t)side * 10 + i);
    EXPECT(!memcmp(text + at, wanted, kLengths[i]), "type %d side %d message %zu", type, side, i);
  }
  EXPECT(recv(pairs[type][1 - side], text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN,
         "type %d: bytes too many", type);
  return NULL;
}
static const char* pairs_check(int round) {
  (void)round;
  for (int i = 0; i < 3; i++) {
    EXPECT(option(pairs[i][0], SOL_SOCKET, SO_TYPE) == kTypes[i], "type %d", i);
    EXPECT(option(pairs[i][0], SOL_SOCKET, SO_SNDBUF) == pairs_buffer[i], "SO_SNDBUF %d",
           option(pairs[i][0], SOL_SOCKET, SO_SNDBUF));
    EXPECT(!(fcntl(pairs[i][0], F_GETFL) & O_NONBLOCK) == (i != 1), "O_NONBLOCK");
    for (int side = 0; side < 2; side++) {
      const char* reason = pairs_receive(i, side);
      if (reason) return reason;
    }
    pairs_send(i);
  }
  return NULL;
}

// ---- listening unix sockets, by name and abstract: a client of after the move is accepted
static int named, abstract;
static struct sockaddr_un named_at = {.sun_family = AF_UNIX}, abstract_at = {.sun_family = AF_UNIX};
static socklen_t abstract_size;
static void unix_listen_prepare(void) {
  const char* path = program_path("socket");
  MUST(strlen(path) < sizeof named_at.sun_path);
  memcpy(named_at.sun_path, path, strlen(path));
  int length =
      snprintf(abstract_at.sun_path + 1, sizeof abstract_at.sun_path - 1, "godwit-test-%d", getpid());
  abstract_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
  named = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  abstract = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  MUST(!bind(named, (struct sockaddr*)&named_at, sizeof named_at) && !listen(named, 5));
  MUST(!bind(abstract, (struct sockaddr*)&abstract_at, abstract_size) && !listen(abstract, 3));
}
static const char* accepts(int listener, int type, const struct sockaddr* at, socklen_t size) {
  int client = socket(at->sa_family, type | SOCK_CLOEXEC, 0);
  EXPECT(!connect(client, at, size), "connect: %s", strerror(errno));
  struct pollfd ready = {listener, POLLIN, 0};
  EXPECT(poll(&ready, 1, 10000) == 1, "no connection comes");
  int served = accept(listener, NULL, NULL);
  EXPECT(served >= 0, "accept: %s", strerror(errno));
  char word[4];
  bool talks = send(client, "ping", 4, 0) == 4 && recv(served, word, 4, MSG_WAITALL) == 4 &&
               !memcmp(word, "ping", 4) && send(served, "pong", 4, 0) == 4 &&
               recv(client, word, 4, MSG_WAITALL) == 4 && !memcmp(word, "pong", 4);
  close(client);
  close(served);
  EXPECT(talks, "they do not talk");
  return NULL;
}
static const char* unix_listen_check(int round) {
  (void)round;
  const char* reason = accepts(named, SOCK_STREAM, (struct sockaddr*)&named_at, sizeof named_at);
  return reason ? reason : accepts(abstract, SOCK_SEQPACKET, (struct sockaddr*)&abstract_at, abstract_size);
}

// ---- UDP: bound, connected, options, datagrams that wait with their senders
static int receiver, sender, wide;
static struct sockaddr_in receiver_at, sender_at;
static const int kUdp[][3] = {{SOL_SOCKET, SO_REUSEADDR, 1},
                              {SOL_SOCKET, SO_BROADCAST, 1},
                              {IPPROTO_IP, IP_TTL, 33},
                              {IPPROTO_IP, IP_TOS, 16}};
static void udp_send(int round) {
  char text[600];
  for (int i = 0; i < 4; i++) {
    fill(text, sizeof text, 70 + (uint64_t)round * 4 + (uint64_t)i);
    MUST(send(sender, text, (size_t)(i * 150 + 8), 0) == i * 150 + 8);
  }
}
static void udp_prepare(void) {
  struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof loopback;
  receiver = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sender = socket(AF_INET, SOCK_DGRAM, 0);
  wide = socket(AF_INET6, SOCK_DGRAM, 0);
  for (int i = 0; i < 4; i++) set_option(receiver, kUdp[i][0], kUdp[i][1], kUdp[i][2]);
  set_option(wide, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  struct sockaddr_in6 any = {.sin6_family = AF_INET6};
  MUST(!bind(receiver, (struct sockaddr*)&loopback, sizeof loopback) &&
       !bind(wide, (struct sockaddr*)&any, sizeof any));
  MUST(!getsockname(receiver, (struct sockaddr*)&receiver_at, &size));
  MUST(!connect(sender, (struct sockaddr*)&receiver_at, size) &&
       !getsockname(sender, (struct sockaddr*)&sender_at, &size));
}
static void udp_queued_prepare(void) {
  udp_prepare();
  udp_send(0);
}
static const char* udp_receive(int round) {
  char text[1000];
  struct sockaddr_in from;
  for (int i = 0; i < 4; i++) {
    socklen_t size = sizeof from;
    ssize_t got = recvfrom(receiver, text, sizeof text, 0, (struct sockaddr*)&from, &size);
    EXPECT(got == i * 150 + 8, "datagram %d: %zd bytes", i, got);
    EXPECT(differs(text, (size_t)got, 70 + (uint64_t)round * 4 + (uint64_t)i) < 0, "datagram %d", i);
    EXPECT(from.sin_port == sender_at.sin_port && from.sin_addr.s_addr == sender_at.sin_addr.s_addr,
           "datagram %d: from port %d", i, ntohs(from.sin_port));
  }
  EXPECT(recv(receiver, text, sizeof text, 0) == -1 && errno == EAGAIN, "a datagram too many");
  return NULL;
}
static const char* udp_check(int round) {
  for (int i = 0; i < 4; i++)
    EXPECT(option(receiver, kUdp[i][0], kUdp[i][1]) == kUdp[i][2], "option %d: %d", i,
           option(receiver, kUdp[i][0], kUdp[i][1]));
  EXPECT(option(wide, IPPROTO_IPV6, IPV6_V6ONLY) == 1, "IPV6_V6ONLY");
  struct sockaddr_in have;
  socklen_t size = sizeof have;
  EXPECT(!getpeername(sender, (struct sockaddr*)&have, &size) && have.sin_port == receiver_at.sin_port,
         "no longer connected");
  udp_send(round);
  return udp_receive(round);
}
static const char* udp_queued_check(int round) {
  const char* reason = udp_receive(round - 1);
  if (!reason) udp_send(round);
  return reason;
}

// ---- TCP listening, v4 and v6
static int tcp_listener, tcp6_listener;
static struct sockaddr_in tcp_at;
static struct sockaddr_in6 tcp6_at;
static void tcp_listen_prepare(void) {
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
  socklen_t size = sizeof tcp_at, size6 = sizeof tcp6_at;
  tcp_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  tcp6_listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
  set_option(tcp_listener, SOL_SOCKET, SO_REUSEADDR, 1);
  set_option(tcp_listener, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(tcp_listener, SOL_SOCKET, SO_KEEPALIVE, 1);
  MUST(!bind(tcp_listener, (struct sockaddr*)&any, sizeof any) && !listen(tcp_listener, 16));
  MUST(!bind(tcp6_listener, (struct sockaddr*)&any6, sizeof any6) && !listen(tcp6_listener, 4));
  MUST(!getsockname(tcp_listener, (struct sockaddr*)&tcp_at, &size) &&
       !getsockname(tcp6_listener, (struct sockaddr*)&tcp6_at, &size6));
}
static const char* tcp_listen_check(int round) {
  (void)round;
  EXPECT(option(tcp_listener, SOL_SOCKET, SO_ACCEPTCONN) == 1, "does not listen");
  EXPECT(option(tcp_listener, IPPROTO_TCP, TCP_NODELAY) == 1 &&
             option(tcp_listener, SOL_SOCKET, SO_KEEPALIVE) == 1,
         "options");
  const char* reason = accepts(tcp_listener, SOCK_STREAM, (struct sockaddr*)&tcp_at, sizeof tcp_at);
  return reason ? reason : accepts(tcp6_listener, SOCK_STREAM, (struct sockaddr*)&tcp6_at, sizeof tcp6_at);
}

// ---- TCP established, both ends in this process, bytes waiting both ways, one direction shut
static int tcp_ends[2], half_ends[2];
static void tcp_connect(int ends[2]) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  MUST(!bind(listener, (struct sockaddr*)&at, sizeof at) && !listen(listener, 1) &&
       !getsockname(listener, (struct sockaddr*)&at, &size));
  ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  MUST(!connect(ends[0], (struct sockaddr*)&at, size) && (ends[1] = accept(listener, NULL, NULL)) >= 0);
  close(listener);
}
static void tcp_send(int round) {
  char* text = malloc(50000);
  for (int side = 0; side < 2; side++) {
    fill(text, 50000, 90 + (uint64_t)round * 2 + (uint64_t)side);
    MUST(send(tcp_ends[side], text, 50000, MSG_DONTWAIT) == 50000);
  }
  free(text);
}
static void tcp_prepare(void) {
  tcp_connect(tcp_ends);
  set_option(tcp_ends[0], IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(tcp_ends[0], SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(tcp_ends[0], IPPROTO_TCP, TCP_KEEPIDLE, 77);
  tcp_send(0);
}
static const char* tcp_check(int round) {
  char* text = malloc(50000);
  for (int side = 0; side < 2; side++) {
    ssize_t got = recv(tcp_ends[1 - side], text, 50000, MSG_WAITALL);
    long at = got == 50000 ? differs(text, 50000, 90 + (uint64_t)(round - 1) * 2 + (uint64_t)side) : -2;
    EXPECT(got == 50000 && at < 0, "side %d: %zd bytes, differs at %ld", side, got, at);
  }
  free(text);
  EXPECT(option(tcp_ends[0], IPPROTO_TCP, TCP_NODELAY) == 1 &&
             option(tcp_ends[0], IPPROTO_TCP, TCP_KEEPIDLE) == 77,
         "options");
  tcp_send(round);
  return NULL;
}
static void tcp_half_prepare(void) {
  tcp_connect(half_ends);
  MUST(send(half_ends[0], "farewell", 8, 0) == 8 && !shutdown(half_ends[0], SHUT_WR));
}
static const char* tcp_half_check(int round) {
  char text[16];
  if (round == 1)
    EXPECT(recv(half_ends[1], text, 8, MSG_WAITALL) == 8 && !memcmp(text, "farewell", 8),
           "what was sent before the end");
  EXPECT(recv(half_ends[1], text, 1, 0) == 0, "no end of stream");
  EXPECT(send(half_ends[1], "still", 5, 0) == 5 && recv(half_ends[0], text, 5, MSG_WAITALL) == 5,
         "the other way is shut too");
  return NULL;
}

int main(int argc, char** argv) {
  static const Case cases[] = {{"pairs", pairs_prepare, pairs_check, false},
                               {"unix_listen", unix_listen_prepare, unix_listen_check, false},
                               {"udp", udp_prepare, udp_check, false},
                               {"udp_queued", udp_queued_prepare, udp_queued_check, true},
                               {"tcp_listen", tcp_listen_prepare, tcp_listen_check, false},
                               {"tcp", tcp_prepare, tcp_check, true},
                               {"tcp_half", tcp_half_prepare, tcp_half_check, true},
                               {NULL, NULL, NULL, false}};
  return program_main(argc, argv, cases);
}
