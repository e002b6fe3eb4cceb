// A link with latency: delay_relay IF1 IF2 MICROSECONDS passes every frame that comes in at one interface out
// at the other, that much later and in order, until it is killed. It says "ready". Frames keep their offloads
// (PACKET_VNET_HDR), so that a segment of 64 KiB is one frame here, too.
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum { kFrame = 80 << 10, kWaiting = 4096 };  // bytes, with the virtio header; frames on the way

typedef struct {
  int64_t due;
  size_t size;
  char* bytes;
} Frame;

typedef struct {
  int from, to;
  Frame frames[kWaiting];  // a ring
  size_t first, count;
} Way;

static int64_t delay;  // ns

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000 + t.tv_nsec;
}

static int open_port(const char* name) {
  const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0);
  const struct sockaddr_ll at = {.sll_family = AF_PACKET,
                                 .sll_protocol = __builtin_bswap16(ETH_P_ALL),
                                 .sll_ifindex = (int)if_nametoindex(name)};
  const int on = 1, room = 64 << 20;
  if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) ||
      setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) ||
      setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) ||
      setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) ||
      bind(fd, (const struct sockaddr*)&at, sizeof at)) {
    perror(name);
    exit(1);
  }
  return fd;
}

// Takes in what has come, as long as there is room; what waits longer is the kernel's to drop.
static void take(Way* way) {
  static char buffer[kFrame];
  while (way->count < kWaiting) {
    const ssize_t size = recv(way->from, buffer, sizeof buffer, 0);
    if (size <= 0) return;
    Frame* frame = &way->frames[(way->first + way->count++) % kWaiting];
    *frame = (Frame){now() + delay, (size_t)size, malloc((size_t)size)};
    if (!frame->bytes) exit(1);
    memcpy(frame->bytes, buffer, (size_t)size);
  }
}

// Lets go what is due. Returns how long the next one waits, or -1.
static int64_t release(Way* way) {
  while (way->count) {
    Frame* frame = &way->frames[way->first];
    const int64_t wait = frame->due - now();
    if (wait > 0) return wait;
    if (send(way->to, frame->bytes, frame->size, 0) < 0 && (errno == EAGAIN || errno == ENOBUFS))
      return 50000;
    free(frame->bytes);
    way->first = (way->first + 1) % kWaiting;
    way->count--;
  }
  return -1;
}

int main(int argc, char** argv) {
  if (argc != 4) return fprintf(stderr, "usage: %s IF1 IF2 MICROSECONDS\n", argv[0]), 2;
  static Way there, back;
  there.from = back.to = open_port(argv[1]);
  there.to = back.from = open_port(argv[2]);
  delay = atol(argv[3]) * 1000;
  prctl(PR_SET_TIMERSLACK, 1);
  prctl(PR_SET_PDEATHSIG, 9);
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    take(&there);
    take(&back);
    const int64_t waits[] = {release(&there), release(&back)};
    int64_t least = waits[0] < 0 || (waits[1] >= 0 && waits[1] < waits[0]) ? waits[1] : waits[0];
    struct timespec rest = {least / 1000000000, least % 1000000000};
    struct pollfd ports[] = {{there.from, POLLIN, 0}, {back.from, POLLIN, 0}};
    if (there.count == kWaiting || back.count == kWaiting) ports[0].events = ports[1].events = 0;
    if (ppoll(ports, 2, least < 0 ? NULL : &rest, NULL) < 0) return perror("ppoll"), 1;
  }
}
