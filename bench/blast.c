/* blast: the load of layer8's measurements. One thread, epoll, and every byte is really copied to and from user space.
 *
 * Every connection starts with an HTTP request head, and everything after it is lawful HTTP, so that a proxy which routes
 * by the Host field, one which looks at every request and one which looks at nothing carry the same bytes. With a HOST
 * of tls:NAME it starts with a TLS ClientHello for NAME instead, as far as somebody can see who has no key.
 * The server takes the head off and then does what its MODE, the path or the first letter of the hello's random, says:
 *   down  GET     answers without end, in blocks of 256 KiB
 *   up    POST    reads a body without end and forgets it
 *   echo  GET     upgrades the connection, then gives back what comes
 *   one   GET     answers with one byte and waits for the end
 *
 *   blast serve PORT [ADDRESS [BUFFER]]         prints "ready" and serves 127.0.0.1:PORT until it is killed; BUFFER is
 *                                               what the kernel keeps of what a connection has to send, in bytes
 *   blast down PORT HOST STREAMS SECONDS        bulk towards us; so does `up` away from us
 *   blast ping PORT HOST SECONDS                64 bytes to and fro on one connection
 *   blast rate PORT HOST CONCURRENCY SECONDS    connect, head, one byte back, close, again
 *   blast first PORT HOST COUNT                 the same one after the other: time to the first byte
 *   blast idle PORT HOST COUNT                  COUNT connections after their first byte, held until stdin ends
 *   blast hold PORT HOST COUNT                  COUNT connections that never say a word, held until stdin ends
 *   blast scan PORT HOST RATE SECONDS           RATE connections a second, each for another unknown name below HOST
 *
 * Every client prints one line of JSON. Times are seconds in the arguments, nanoseconds in the results.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 256 * 1024, HEAD = 1024, PING = 64, BATCH = 256, FDS = 1 << 17, WARM_NS = 300000000 };
enum mode { READING_HEAD, DOWN, UP, ECHO, ONE };

#define ENDLESS "900000000000000"
#define ANSWER "HTTP/1.1 200 OK\r\nContent-Length: "

static char block[BLOCK];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *need(void *memory)
{
    if (!memory)
        die("memory");
    return memory;
}

static struct sockaddr_in loopback(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static int open_socket(int flags)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0)
        die("socket");
    if (fd >= FDS) {
        errno = EMFILE;
        die("socket");
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* A connecting non-blocking socket, or -1 when the kernel refuses at once. */
static int start_connect(int port)
{
    struct sockaddr_in a = loopback(port);
    int fd = open_socket(SOCK_NONBLOCK);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

static int must_connect(int port)
{
    struct sockaddr_in a = loopback(port);
    int fd = open_socket(0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
        die("connect");
    return fd;
}

static size_t number(char *to, size_t at, size_t value, int size)
{
    while (size--)
        to[at++] = (char)(value >> (8 * size));
    return at;
}

/* One record with one ClientHello: version, random, no session, one cipher, no compression, the name, TLS 1.3. */
static size_t make_hello(char *to, char mode, const char *name)
{
    size_t length = strlen(name), extensions = 4 + 5 + length + 4 + 3, body = 2 + 32 + 1 + 4 + 2 + 2 + extensions;
    size_t at = number(to, 0, 0x160301, 3);
    at = number(to, at, 4 + body, 2);
    at = number(to, at, 1, 1);
    at = number(to, at, body, 3);
    at = number(to, at, 0x0303, 2);
    memset(to + at, 7, 32);
    to[at] = mode;
    at = number(to, at + 32, 0, 1);
    at = number(to, at, 0x00021301, 4);
    at = number(to, at, 0x0100, 2);
    at = number(to, at, extensions, 2);
    at = number(to, at, 0, 2);
    at = number(to, at, 5 + length, 2);
    at = number(to, at, 3 + length, 2);
    at = number(to, at, 0, 1);
    at = number(to, at, length, 2);
    memcpy(to + at, name, length);
    return number(to, at + length, 0x002b0003020304, 7);
}

static int is_tls(const char *host)
{
    return !strncmp(host, "tls:", 4);
}

static size_t make_head(char *to, const char *mode, const char *host)
{
    if (is_tls(host))
        return make_hello(to, *mode, host + 4);
    const char *method = *mode == 'u' ? "POST" : "GET", *more = "";
    if (*mode == 'u')
        more = "Content-Length: " ENDLESS "\r\n";
    if (*mode == 'e')
        more = "Connection: Upgrade\r\nUpgrade: echo\r\n";
    return (size_t)snprintf(to, HEAD, "%s /%s HTTP/1.1\r\nHost: %s\r\n%s\r\n", method, mode, host, more);
}

static void watch(int ep, int fd, uint32_t events, int op)
{
    struct epoll_event e = {.events = events, .data.fd = fd};
    if (epoll_ctl(ep, op, fd, &e) < 0)
        die("epoll_ctl");
}

/* ---- server */

struct served {
    enum mode mode;
    int used;
    char *head; /* only while the head is read, so that idle connections cost the server little */
};

static void answer(int ep, int fd, struct served *s)
{
    ssize_t n;
    switch (s->mode) {
    case DOWN:
        for (int i = 0; i < 4; i++)
            if ((n = write(fd, block, BLOCK)) < BLOCK) {
                if (n < 0 && errno != EAGAIN)
                    close(fd);
                return;
            }
        return;
    case READING_HEAD: {
        if (!s->head)
            s->head = need(malloc(HEAD));
        n = read(fd, s->head + s->used, (size_t)(HEAD - 1 - s->used));
        if (n <= 0)
            break;
        s->used += (int)n;
        s->head[s->used] = 0;
        int tls = s->head[0] == 0x16, size = 0;
        if (tls && s->used > 11)
            size = 5 + (uint8_t)s->head[3] * 256 + (uint8_t)s->head[4];
        char *end = tls ? NULL : strstr(s->head, "\r\n\r\n");
        if (end)
            size = (int)(end + 4 - s->head);
        if (!size || s->used < size) {
            if (s->used == HEAD - 1)
                break;
            return;
        }
        char *path = tls ? s->head + 11 : strchr(s->head, '/');
        char what = tls ? *path : path ? path[1] : 0;
        int rest = s->used - size;
        s->mode = what == 'd' ? DOWN : what == 'u' ? UP : what == 'e' ? ECHO : ONE;
        const char *first = tls ? "" : s->mode == DOWN ? ANSWER ENDLESS "\r\n\r\n" : "";
        if (s->mode == ONE)
            first = tls ? "1" : ANSWER "1\r\n\r\n1";
        if (s->mode == ECHO && !tls)
            first = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        if (*first && write(fd, first, strlen(first)) != (ssize_t)strlen(first))
            break;
        if (s->mode == ECHO && rest && write(fd, s->head + size, (size_t)rest) != rest)
            break;
        free(s->head);
        s->head = NULL;
        if (s->mode == DOWN)
            watch(ep, fd, EPOLLOUT, EPOLL_CTL_MOD);
        return;
    }
    case UP:
    case ONE:
        if (read(fd, block, BLOCK) <= 0)
            break;
        return;
    case ECHO:
        n = read(fd, block, 4096);
        if (n <= 0 || write(fd, block, (size_t)n) != n)
            break;
        return;
    }
    free(s->head);
    s->head = NULL;
    close(fd);
}

static _Noreturn void serve(int port, const char *address, int buffer)
{
    struct sockaddr_in a = loopback(port);
    if (*address && inet_pton(AF_INET, address, &a.sin_addr) != 1)
        die(address);
    struct served *table = need(calloc(FDS, sizeof *table));
    int one = 1, ep = epoll_create1(EPOLL_CLOEXEC), listener = open_socket(SOCK_NONBLOCK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (buffer)
        setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    if (bind(listener, (struct sockaddr *)&a, sizeof a) < 0 || listen(listener, 4096) < 0)
        die("listen");
    watch(ep, listener, EPOLLIN, EPOLL_CTL_ADD);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[BATCH];
        int n = epoll_wait(ep, events, BATCH, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                answer(ep, fd, &table[fd]);
                continue;
            }
            for (int j = 0; j < 64; j++) {
                int got = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (got < 0)
                    break;
                if (got >= FDS) {
                    close(got);
                    continue;
                }
                setsockopt(got, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                free(table[got].head);
                table[got] = (struct served){.mode = READING_HEAD};
                watch(ep, got, EPOLLIN, EPOLL_CTL_ADD);
            }
        }
    }
}

/* ---- clients */

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void print_times(uint32_t *times, size_t n, double seconds)
{
    if (!n) {
        printf("{\"count\": 0}\n");
        return;
    }
    qsort(times, n, sizeof *times, by_size);
    printf("{\"count\": %zu, \"seconds\": %.6f, \"p50\": %u, \"p90\": %u, \"p99\": %u, \"max\": %u}\n", n, seconds,
           times[n / 2], times[n * 9 / 10], times[n * 99 / 100], times[n - 1]);
}

static int bulk(const char *mode, int port, const char *host, int streams, double seconds)
{
    int ep = epoll_create1(EPOLL_CLOEXEC), down = !strcmp(mode, "down"), failed = 0;
    char head[HEAD];
    size_t head_size = make_head(head, mode, host);
    char *sent = need(calloc(FDS, 1));
    uint64_t *bytes = need(calloc(FDS, sizeof *bytes)), *base = need(calloc(FDS, sizeof *base));
    int *fds = need(calloc((size_t)streams, sizeof *fds));
    for (int i = 0; i < streams; i++) {
        if ((fds[i] = start_connect(port)) < 0)
            die("connect");
        watch(ep, fds[i], EPOLLOUT, EPOLL_CTL_ADD);
    }
    uint64_t start = now_ns(), began = 0, end = 0, t;
    while ((t = now_ns()), !end || t < end) {
        struct epoll_event events[BATCH];
        if (!began && t >= start + WARM_NS) {
            memcpy(base, bytes, FDS * sizeof *base);
            began = t;
            end = t + (uint64_t)(seconds * 1e9);
        }
        int n = epoll_wait(ep, events, BATCH, 20);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            ssize_t got;
            if (!sent[fd]) {
                sent[fd] = 1;
                got = write(fd, head, head_size) == (ssize_t)head_size ? 0 : -1;
                if (!got && down)
                    watch(ep, fd, EPOLLIN, EPOLL_CTL_MOD);
            } else if (down) {
                got = read(fd, block, BLOCK);
                got = got ? got : -1;
            } else {
                got = write(fd, block, BLOCK);
            }
            if (got > 0) {
                bytes[fd] += (uint64_t)got;
            } else if (got < 0 && errno != EAGAIN) {
                failed++;
                close(fd);
            }
        }
    }
    uint64_t all = 0, window = 0, least = UINT64_MAX, most = 0;
    for (int i = 0; i < streams; i++) {
        uint64_t n = bytes[fds[i]] - base[fds[i]];
        all += bytes[fds[i]];
        window += n;
        least = n < least ? n : least;
        most = n > most ? n : most;
    }
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"all_bytes\": %llu, \"least\": %llu, \"most\": %llu, \"failed\": %d}\n",
           (unsigned long long)window, (double)(t - began) / 1e9, (unsigned long long)all, (unsigned long long)least,
           (unsigned long long)most, failed);
    return 0;
}

static int ping(int port, const char *host, double seconds)
{
    enum { MOST = 1 << 22, SKIP = 20 };
    uint32_t *times = need(malloc(MOST * sizeof *times));
    char head[HEAD], message[PING] = {0};
    size_t n = 0;
    int fd = must_connect(port);
    if (write(fd, head, make_head(head, "echo", host)) < 0)
        die("write");
    for (int have = 0, got; !is_tls(host) && (have < 4 || memcmp(head + have - 4, "\r\n\r\n", 4)); have += got)
        if (have == HEAD || (got = (int)read(fd, head + have, 1)) <= 0)
            die("no upgrade");
    uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), t = start;
    for (int round = 0; t < end && n < MOST; round++) {
        if (write(fd, message, PING) != PING)
            die("write");
        for (int have = 0; have < PING;) {
            ssize_t got = read(fd, message, (size_t)(PING - have));
            if (got <= 0)
                die("read");
            have += (int)got;
        }
        uint64_t after = now_ns();
        if (round >= SKIP)
            times[n++] = (uint32_t)(after - t);
        t = after;
    }
    print_times(times, n, (double)(t - start) / 1e9);
    return 0;
}

static int first(int port, const char *host, int count)
{
    uint32_t *times = need(malloc((size_t)count * sizeof *times));
    char head[HEAD], got[HEAD];
    size_t size = make_head(head, "one", host);
    uint64_t start = now_ns();
    for (int i = 0; i < count; i++) {
        uint64_t t = now_ns();
        int fd = must_connect(port);
        if (write(fd, head, size) < 0 || read(fd, got, sizeof got) < 1)
            die("no answer");
        times[i] = (uint32_t)(now_ns() - t);
        close(fd);
    }
    print_times(times, (size_t)count, (double)(now_ns() - start) / 1e9);
    return 0;
}

static int rate(int port, const char *host, int concurrency, double seconds)
{
    int ep = epoll_create1(EPOLL_CLOEXEC);
    char head[HEAD], *sent = need(calloc(FDS, 1));
    size_t size = make_head(head, "one", host);
    uint64_t done = 0, failed = 0, start = now_ns(), end = start + (uint64_t)(seconds * 1e9), t;
    for (int i = 0; i < concurrency; i++) {
        int fd = start_connect(port);
        if (fd < 0)
            die("connect");
        sent[fd] = 0;
        watch(ep, fd, EPOLLOUT, EPOLL_CTL_ADD);
    }
    while ((t = now_ns()) < end) {
        struct epoll_event events[BATCH];
        int n = epoll_wait(ep, events, BATCH, 20);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (!sent[fd]) {
                sent[fd] = 1;
                if (write(fd, head, size) == (ssize_t)size) {
                    watch(ep, fd, EPOLLIN, EPOLL_CTL_MOD);
                    continue;
                }
                failed++;
            } else {
                ssize_t got = read(fd, block, HEAD);
                if (got < 0 && errno == EAGAIN)
                    continue;
                *(got > 0 ? &done : &failed) += 1;
            }
            close(fd);
            if ((fd = start_connect(port)) < 0)
                die("connect");
            sent[fd] = 0;
            watch(ep, fd, EPOLLOUT, EPOLL_CTL_ADD);
        }
    }
    printf("{\"count\": %llu, \"failed\": %llu, \"seconds\": %.6f}\n", (unsigned long long)done,
           (unsigned long long)failed, (double)(t - start) / 1e9);
    return 0;
}

static int hold(const char *mode, int port, const char *host, int count)
{
    char head[HEAD], got[HEAD];
    size_t size = make_head(head, "one", host);
    for (int i = 0; i < count; i++) {
        int fd = must_connect(port);
        if (!strcmp(mode, "idle") && (write(fd, head, size) < 0 || read(fd, got, sizeof got) < 1))
            die("no answer");
    }
    printf("{\"count\": %d}\n", count);
    fflush(stdout);
    while (read(0, got, sizeof got) > 0)
        ;
    return 0;
}

static int scan(int port, const char *host, double per_second, double seconds)
{
    enum { MOST = 512 };
    int ep = epoll_create1(EPOLL_CLOEXEC), open_now = 0;
    char *sent = need(calloc(FDS, 1)), name[HEAD / 2], head[HEAD];
    uint64_t opened = 0, closed = 0, answered = 0, start = now_ns(), end = start + (uint64_t)(seconds * 1e9), t;
    /* one more second after the last connection for those that are still open */
    while ((t = now_ns()) < end || (open_now && t < end + 1000000000u)) {
        uint64_t due = (uint64_t)((double)((t < end ? t : end) - start) / 1e9 * per_second);
        for (; t < end && opened < due && open_now < MOST; opened++, open_now++) {
            int fd = start_connect(port);
            if (fd < 0)
                die("connect");
            sent[fd] = 0;
            watch(ep, fd, EPOLLOUT, EPOLL_CTL_ADD);
        }
        struct epoll_event events[BATCH];
        int n = epoll_wait(ep, events, BATCH, 1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (!sent[fd]) {
                sent[fd] = 1;
                snprintf(name, sizeof name, "%sn%llu-%d.%s", is_tls(host) ? "tls:" : "", (unsigned long long)opened, fd,
                         is_tls(host) ? host + 4 : host);
                size_t size = make_head(head, "one", name);
                if (write(fd, head, size) == (ssize_t)size) {
                    watch(ep, fd, EPOLLIN, EPOLL_CTL_MOD);
                    continue;
                }
            } else {
                ssize_t got = read(fd, block, BLOCK);
                if (got < 0 && errno == EAGAIN)
                    continue;
                if (got > 0) {
                    answered++;
                    continue;
                }
            }
            close(fd);
            closed++;
            open_now--;
        }
    }
    printf("{\"opened\": %llu, \"closed\": %llu, \"answered\": %llu, \"open\": %d, \"seconds\": %.6f}\n",
           (unsigned long long)opened, (unsigned long long)closed, (unsigned long long)answered, open_now,
           (double)(t - start) / 1e9);
    return 0;
}

int main(int argc, char **argv)
{
    struct rlimit files;
    signal(SIGPIPE, SIG_IGN);
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (argc < 3) {
        fprintf(stderr, "usage: blast MODE PORT [HOST ...]; see the head of blast.c\n");
        return 2;
    }
    const char *mode = argv[1], *host = argc > 3 ? argv[3] : "";
    int port = atoi(argv[2]);
    double third = argc > 4 ? atof(argv[4]) : 0, fourth = argc > 5 ? atof(argv[5]) : 0;
    if (!strcmp(mode, "serve"))
        serve(port, host, (int)third);
    if (!strcmp(mode, "down") || !strcmp(mode, "up"))
        return bulk(mode, port, host, (int)third, fourth);
    if (!strcmp(mode, "ping"))
        return ping(port, host, third);
    if (!strcmp(mode, "rate"))
        return rate(port, host, (int)third, fourth);
    if (!strcmp(mode, "first"))
        return first(port, host, (int)third);
    if (!strcmp(mode, "idle") || !strcmp(mode, "hold"))
        return hold(mode, port, host, (int)third);
    if (!strcmp(mode, "scan"))
        return scan(port, host, third, fourth);
    fprintf(stderr, "blast: no such mode: %s\n", mode);
    return 2;
}
