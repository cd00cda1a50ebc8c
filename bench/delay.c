/* delay: a link with a long way, between the network namespace it is started in and one that it makes.
 *
 *   delay NEAR FAR MICROSECONDS     two addresses of one /30, and how long a packet takes from one to the other
 *
 * Each end is a TUN device with an MTU of 1500. A packet waits in a ring until it is due, then it is written to the
 * other end; nothing is lost, reordered or shaped beyond the rings' size. The far end has a loopback of its own, and
 * the congestion control of the near one. Prints "ready"; a number on a line of stdin is the new delay, the end of
 * stdin is the end of the link. /proc/PID/ns/net of this process is the far namespace: enter it to be there.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 1500, SLOTS = 1 << 15 };
static const char *CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control";

struct packet {
    uint64_t due;
    uint16_t size;
    char data[MTU];
};

struct way {
    int from, to;
    uint32_t head, tail; /* packets wait in [head, tail) */
    struct packet *ring;
};

static void die(const char *what)
{
    fprintf(stderr, "delay: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void ask(int fd, unsigned long what, struct ifreq *about)
{
    if (ioctl(fd, what, about) < 0)
        die("ioctl");
}

static void set_address(int fd, unsigned long what, struct ifreq *about, const char *address)
{
    struct sockaddr_in *a = (struct sockaddr_in *)&about->ifr_addr;
    memset(a, 0, sizeof *a);
    a->sin_family = AF_INET;
    if (inet_pton(AF_INET, address, &a->sin_addr) != 1)
        die(address);
    ask(fd, what, about);
}

static void up(int fd, struct ifreq *about)
{
    ask(fd, SIOCGIFFLAGS, about);
    about->ifr_flags |= IFF_UP;
    ask(fd, SIOCSIFFLAGS, about);
}

/* A TUN device in the namespace of this moment. */
static int open_end(const char *address)
{
    struct ifreq about = {0};
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        die("/dev/net/tun");
    about.ifr_flags = IFF_TUN | IFF_NO_PI;
    ask(fd, TUNSETIFF, &about);
    set_address(any, SIOCSIFADDR, &about, address);
    set_address(any, SIOCSIFNETMASK, &about, "255.255.255.252");
    about.ifr_mtu = MTU;
    ask(any, SIOCSIFMTU, &about);
    about.ifr_qlen = SLOTS;
    ask(any, SIOCSIFTXQLEN, &about);
    up(any, &about);
    close(any);
    return fd;
}

static void go_far(void)
{
    char name[64] = "";
    struct ifreq about = {.ifr_name = "lo"};
    int fd = open(CONTROL, O_RDONLY), any;
    ssize_t size = fd < 0 ? 0 : read(fd, name, sizeof name - 1);
    close(fd);
    if (unshare(CLONE_NEWNET) < 0)
        die("unshare");
    fd = open(CONTROL, O_WRONLY);
    if (size > 0 && fd >= 0 && write(fd, name, (size_t)size) != size)
        die(CONTROL);
    close(fd);
    any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    up(any, &about);
    close(any);
}

static void take(struct way *w, uint64_t delay)
{
    while (w->tail - w->head < SLOTS) {
        struct packet *p = &w->ring[w->tail % SLOTS];
        ssize_t size = read(w->from, p->data, MTU);
        if (size <= 0)
            return;
        p->size = (uint16_t)size;
        p->due = now_ns() + delay;
        w->tail++;
    }
}

/* Give when the next packet is due, 0 for never. */
static uint64_t give(struct way *w)
{
    while (w->head != w->tail) {
        struct packet *p = &w->ring[w->head % SLOTS];
        if (p->due > now_ns())
            return p->due;
        if (write(w->to, p->data, p->size) < 0 && errno == EAGAIN)
            return now_ns() + 100000;
        w->head++;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct way ways[2] = {{0}};
    char line[64];
    if (argc != 4) {
        fprintf(stderr, "usage: delay NEAR FAR MICROSECONDS; see the head of delay.c\n");
        return 2;
    }
    uint64_t delay = strtoull(argv[3], NULL, 10) * 1000u;
    prctl(PR_SET_TIMERSLACK, 1000);
    ways[0].from = ways[1].to = open_end(argv[1]);
    go_far();
    ways[0].to = ways[1].from = open_end(argv[2]);
    for (int i = 0; i < 2; i++)
        if (!(ways[i].ring = malloc(SLOTS * sizeof *ways[i].ring)))
            die("memory");
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd fds[3] = {{.fd = 0, .events = POLLIN},
                                {.fd = ways[0].from, .events = POLLIN},
                                {.fd = ways[1].from, .events = POLLIN}};
        uint64_t next = 0, t = now_ns();
        for (int i = 0; i < 2; i++) {
            uint64_t due = give(&ways[i]);
            if (due && (!next || due < next))
                next = due;
        }
        uint64_t rest = next > t ? next - t : 0;
        struct timespec wait = {.tv_sec = (time_t)(rest / 1000000000u), .tv_nsec = (long)(rest % 1000000000u)};
        if (ppoll(fds, 3, next ? &wait : NULL, NULL) < 0 && errno != EINTR)
            die("poll");
        if (fds[0].revents) {
            ssize_t size = read(0, line, sizeof line - 1);
            if (size <= 0)
                return 0;
            line[size] = 0;
            delay = strtoull(line, NULL, 10) * 1000u;
        }
        for (int i = 0; i < 2; i++)
            if (fds[i + 1].revents)
                take(&ways[i], delay);
    }
}
