// The yardstick of the throughput bench: bytes through one TCP connection with 1 MiB writes, and nothing
// else. raw_tcp receive PORT [MIB]; raw_tcp send ADDR PORT MIB prints GB/s, from the first write to the
// receiver's answer. With MIB the receiver keeps what comes, in memory that nobody has touched before: what a
// copy of a process needs, whatever brings it. raw_tcp touch MIB takes that much memory and gives it back: a
// host that takes a guest's free pages away has then given them again, and nobody measures that.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const size_t kChunk = 1 << 20;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int serve(const char* port, size_t kept_mib) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
  const int on = 1;
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr*)&at, sizeof at) || listen(listener, 1)) return perror("listen"), 1;
  printf("ready\n");
  fflush(stdout);
  const int guest = accept(listener, NULL, NULL);
  const size_t room = kept_mib ? kept_mib * kChunk : kChunk;
  char* memory = malloc(room);
  for (size_t at = 0; room > at;) {
    const size_t most = kept_mib && room - at < kChunk ? room - at : kChunk;
    const ssize_t n = recv(guest, memory + at, most, 0);
    if (n <= 0) break;
    if (kept_mib) at += (size_t)n;
  }
  return send(guest, "!", 1, 0) != 1;
}

static int measure(const char* address, const char* port, size_t mib) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (inet_pton(AF_INET, address, &at.sin_addr) != 1 || connect(fd, (struct sockaddr*)&at, sizeof at))
    return perror("connect"), 1;
  // As much distinct memory as is sent, as the migration has.
  char* memory = malloc(mib * kChunk);
  for (size_t i = 0; i < mib * kChunk / 8; i++) ((size_t*)memory)[i] = i * 0x9e3779b97f4a7c15UL;
  const double began = now();
  for (size_t sent = 0; sent < mib * kChunk;) {
    const ssize_t n = send(fd, memory + sent, kChunk < mib * kChunk - sent ? kChunk : mib * kChunk - sent, 0);
    if (n <= 0) return perror("send"), 1;
    sent += (size_t)n;
  }
  shutdown(fd, SHUT_WR);
  char answer;
  if (recv(fd, &answer, 1, 0) != 1) return perror("recv"), 1;
  printf("%.4f\n", (double)(mib * kChunk) / (now() - began) / 1e9);
  return 0;
}

static int touch(size_t mib) {
  char* memory = malloc(mib * kChunk);
  if (!memory) return perror("malloc"), 1;
  for (size_t at = 0; at < mib * kChunk; at += 4096) ((volatile char*)memory)[at] = 1;
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 3 && !strcmp(argv[1], "touch")) return touch((size_t)atol(argv[2]));
  if (argc >= 3 && argc <= 4 && !strcmp(argv[1], "receive"))
    return serve(argv[2], argc == 4 ? (size_t)atol(argv[3]) : 0);
  if (argc == 5 && !strcmp(argv[1], "send")) return measure(argv[2], argv[3], (size_t)atol(argv[4]));
  fprintf(stderr, "usage: %s receive PORT [MIB] | send ADDR PORT MIB | touch MIB\n", argv[0]);
  return 2;
}
