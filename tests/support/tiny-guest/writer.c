// writer DEVICE...: writes to every device all the time with O_DIRECT, so that nothing hides in the guest's page cache.
//
// Blocks of 4 to 64 KiB at random places with content that no other write has; about every sixteenth write is a
// write of zeros (BLKZEROOUT), because QEMU treats those apart. A short pause after each write leaves the host's
// processors to the test. Words on standard input, one a line, each answered
// by one line on standard output:
//   stop   -> WRITER stopped ...   after all devices are flushed: nothing is written until "go"
//   go     -> WRITER going ...
//   gently -> WRITER going ...     some ten writes a second
//   status -> WRITER status ...
// Each answer carries writes= errors= errno=, and of the time that writes took since the last answer maxlat_ms= p50_us= p999_us=
// (the last two to an eighth). Starts stopped, with WRITER ready.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

// Buckets of a histogram of microseconds, eight for each doubling.
enum { FINE = 8, BUCKETS = 64 * FINE };
enum { MAX_DEVICES = 8, MAX_BLOCK = 65536, UNIT = 4096, PACE_US = 500, GENTLE_US = 100000 };

static uint64_t writes, errors;
static int last_errno;
static double slowest;
static uint64_t took_us[BUCKETS];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static uint64_t noise(void) {
    static uint64_t x = 0x9E3779B97F4A7C15ull;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x;
}

static unsigned bucket(uint64_t us) {
    if (us < FINE) return us;
    int doublings = 63 - __builtin_clzll(us);
    return (doublings - 2) * FINE + ((us >> (doublings - 3)) & (FINE - 1));
}

static uint64_t end_of(unsigned bucket) {
    return bucket < FINE ? bucket + 1 : (uint64_t)(FINE + bucket % FINE + 1) << (bucket / FINE - 1);
}

// The time within which so many thousandths of the writes were done.
static unsigned long long quantile(unsigned thousandths) {
    uint64_t all = 0, seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) all += took_us[i];
    for (unsigned i = 0; i < BUCKETS; i++)
        if ((seen += took_us[i]) * 1000 >= all * thousandths && seen) return end_of(i);
    return 0;
}

static void answer(const char *word) {
    printf("WRITER %s writes=%llu errors=%llu errno=%d maxlat_ms=%.0f p50_us=%llu p999_us=%llu\n", word,
           (unsigned long long)writes, (unsigned long long)errors, last_errno, slowest * 1000, quantile(500),
           quantile(999));
    fflush(stdout);
    slowest = 0;
    memset(took_us, 0, sizeof took_us);
}

static void write_once(int fd, uint64_t size, unsigned char *block) {
    uint64_t length = UNIT * (1 + noise() % (MAX_BLOCK / UNIT)), units = size / UNIT;
    if (length > units * UNIT) length = UNIT;
    uint64_t offset = noise() % (units - length / UNIT + 1) * UNIT;
    double start = now();
    int failed;
    if (noise() % 16 == 0) {
        uint64_t range[2] = {offset, length};
        failed = ioctl(fd, BLKZEROOUT, range) != 0;
    } else {
        for (uint64_t i = 0; i < length / 8; i++) ((uint64_t *)block)[i] = (writes << 20) + i + 1;
        failed = pwrite(fd, block, length, offset) != (ssize_t)length;
    }
    if (failed) errors++, last_errno = errno;
    writes++;
    double took = now() - start;
    if (took > slowest) slowest = took;
    took_us[bucket(took * 1e6)]++;
}

int main(int count, char **names) {
    int fds[MAX_DEVICES], devices = 0, going = 0, pace = PACE_US;
    uint64_t sizes[MAX_DEVICES];
    void *block;
    if (posix_memalign(&block, UNIT, MAX_BLOCK)) return 1;
    for (int i = 1; i < count && devices < MAX_DEVICES; i++, devices++) {
        fds[devices] = open(names[i], O_RDWR | O_DIRECT);
        if (fds[devices] < 0 || ioctl(fds[devices], BLKGETSIZE64, &sizes[devices])) return perror(names[i]), 1;
    }
    if (!devices) return fprintf(stderr, "WRITER has no devices\n"), 1;
    printf("WRITER devices=%d\n", devices);
    answer("ready");
    char line[128];
    size_t filled = 0;
    for (uint64_t turn = 0;; turn++) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        if (poll(&input, 1, going ? 0 : -1) > 0) {
            ssize_t got = read(0, line + filled, 1);
            if (got <= 0) return 0;
            if (line[filled] != '\n' && line[filled] != '\r') {
                if (filled < sizeof line - 2) filled++;
                continue;
            }
            line[filled] = 0, filled = 0;
            if (!strcmp(line, "stop")) {
                for (int i = 0; i < devices; i++)
                    if (fsync(fds[i])) errors++, last_errno = errno;
                going = 0, answer("stopped");
            } else if (!strcmp(line, "go")) {
                going = 1, pace = PACE_US, answer("going");
            } else if (!strcmp(line, "gently")) {
                going = 1, pace = GENTLE_US, answer("going");
            } else if (!strcmp(line, "status")) {
                answer("status");
            }
            continue;
        }
        if (!going) continue;
        write_once(fds[turn % devices], sizes[turn % devices], block);
        usleep(pace);
    }
}
