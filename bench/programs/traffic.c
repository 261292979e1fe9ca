/*
 * Traffic for the network figures. One process serves, another asks; both count, neither knows what lies between.
 *
 *   traffic serve PORT [6]               (on IPv6) PORT echoes bytes, PORT+1 answers one byte and closes, PORT+2 counts datagrams,
 *                                        PORT+3 tells that count over TCP and starts it anew
 *   traffic rr ADDRESS PORT SECONDS      one byte there and back on one connection
 *   traffic crr ADDRESS PORT SECONDS     connect, one byte there and back, close
 *   traffic udp ADDRESS PORT SECONDS     datagrams of 64 bytes, as fast as one socket sends
 *
 * The asking side prints "COUNT SECONDS". The server closes first, so that no client port waits in TIME_WAIT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PAYLOAD = 64, BATCH = 64, ACCEPTORS = 2, ANSWER_SECONDS = 5, IDLE_LOOKS = 40 };

static atomic_ulong datagrams;

static void die(const char *what)
{
    fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int make_socket(int family, int kind)
{
    int fd = socket(family, kind | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        die("socket");
    if (kind == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static union address address_of(int family, int port)
{
    union address a = {.any.sa_family = (sa_family_t)family};
    if (family == AF_INET6)
        a.six.sin6_port = htons((uint16_t)port);
    else
        a.four.sin_port = htons((uint16_t)port);
    return a;
}

static int serving_family = AF_INET;

static int bound(int kind, int port)
{
    int fd = make_socket(serving_family, kind), on = 1, space = 16 << 20;
    union address here = address_of(serving_family, port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (kind == SOCK_DGRAM)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof space);
    if (bind(fd, &here.any, sizeof here))
        die("bind");
    if (kind == SOCK_STREAM && listen(fd, 1024))
        die("listen");
    return fd;
}

static int connected(int kind, const char *address, int port)
{
    int family = strchr(address, ':') ? AF_INET6 : AF_INET, fd = make_socket(family, kind);
    union address there = address_of(family, port);
    struct timeval limit = {.tv_sec = ANSWER_SECONDS}; /* a path that loses everything must not hang the bench */
    if (inet_pton(family, address, family == AF_INET6 ? (void *)&there.six.sin6_addr : (void *)&there.four.sin_addr) != 1)
        errno = EINVAL, die(address);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, &there.any, sizeof there))
        die("connect");
    return fd;
}

/* --- serving --- */

static void *echo_one(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char data[4096];
    ssize_t got;
    while ((got = recv(fd, data, sizeof data, 0)) > 0)
        if (send(fd, data, (size_t)got, MSG_NOSIGNAL) != got)
            break;
    close(fd);
    return NULL;
}

static void *serve_echo(void *argument)
{
    int listener = (int)(intptr_t)argument, on = 1;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (pthread_create(&thread, NULL, echo_one, (void *)(intptr_t)fd))
            close(fd);
        else
            pthread_detach(thread);
    }
    return NULL;
}

static void *serve_short(void *argument)
{
    int listener = (int)(intptr_t)argument;
    char byte;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        if (recv(fd, &byte, 1, 0) == 1)
            send(fd, &byte, 1, MSG_NOSIGNAL);
        close(fd);
    }
    return NULL;
}

/* While datagrams come, looks now and then instead of waiting: to wake a reader costs the sender as much as a short
 * path does. */
static void *serve_datagrams(void *argument)
{
    int fd = (int)(intptr_t)argument;
    static char data[BATCH][PAYLOAD];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH] = {0};
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], PAYLOAD};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (int idle = 0;;) {
        int got = recvmmsg(fd, messages, BATCH, idle < IDLE_LOOKS ? MSG_DONTWAIT : MSG_WAITFORONE, NULL);
        if (got > 0) {
            atomic_fetch_add(&datagrams, (unsigned long)got);
            idle = 0;
        } else {
            idle++;
        }
        if (got < BATCH)
            usleep(500);
    }
    return NULL;
}

static void serve_count(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        unsigned long count;
        if (fd < 0)
            continue;
        count = atomic_exchange(&datagrams, 0);
        send(fd, &count, sizeof count, MSG_NOSIGNAL);
        close(fd);
    }
}

static void start(void *(*body)(void *), int fd)
{
    pthread_t thread;
    if ((errno = pthread_create(&thread, NULL, body, (void *)(intptr_t)fd)))
        die("thread");
}

static void serve(int port)
{
    int short_listener = bound(SOCK_STREAM, port + 1), count_listener = bound(SOCK_STREAM, port + 3);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    start(serve_echo, bound(SOCK_STREAM, port));
    for (int i = 0; i < ACCEPTORS; i++)
        start(serve_short, short_listener);
    start(serve_datagrams, bound(SOCK_DGRAM, port + 2));
    puts("ready");
    fflush(stdout);
    serve_count(count_listener);
}

/* --- asking --- */

static unsigned long ask_rr(const char *address, int port, double until)
{
    int fd = connected(SOCK_STREAM, address, port);
    unsigned long count = 0;
    char byte = 'x';
    while (now() < until) {
        if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1)
            die("request-response");
        count++;
    }
    close(fd);
    return count;
}

static unsigned long ask_crr(const char *address, int port, double until)
{
    unsigned long count = 0;
    while (now() < until) {
        int fd = connected(SOCK_STREAM, address, port + 1);
        char byte = 'x';
        if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1 || recv(fd, &byte, 1, 0) != 0)
            die("connect-request-close");
        close(fd);
        count++;
    }
    return count;
}

static unsigned long datagrams_there(const char *address, int port)
{
    unsigned long count = 0;
    int fd = connected(SOCK_STREAM, address, port + 3);
    if (recv(fd, &count, sizeof count, MSG_WAITALL) != sizeof count)
        die("asking for the count");
    close(fd);
    return count;
}

/* What arrived, not what was sent. */
static unsigned long ask_udp(const char *address, int port, double seconds, double *took)
{
    int fd = connected(SOCK_DGRAM, address, port + 2);
    char data[PAYLOAD] = {0};
    double began;
    datagrams_there(address, port);
    began = now();
    while (now() < began + seconds)
        for (int i = 0; i < 16; i++)
            if (send(fd, data, sizeof data, 0) < 0 && errno != ENOBUFS && errno != EAGAIN)
                die("send");
    *took = now() - began;
    usleep(100000);
    close(fd);
    return datagrams_there(address, port);
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "serve") && !strcmp(argv[3], "6"))
        serving_family = AF_INET6;
    if ((argc == 3 || serving_family == AF_INET6) && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]));
    if (argc != 5) {
        fprintf(stderr, "usage: traffic serve PORT [6] | traffic rr|crr|udp ADDRESS PORT SECONDS\n");
        return 2;
    }
    int port = atoi(argv[3]);
    double seconds = atof(argv[4]), began = now(), took = 0;
    unsigned long count;
    if (!strcmp(argv[1], "rr"))
        count = ask_rr(argv[2], port, began + seconds);
    else if (!strcmp(argv[1], "crr"))
        count = ask_crr(argv[2], port, began + seconds);
    else
        count = ask_udp(argv[2], port, seconds, &took);
    printf("%lu %.6f\n", count, took > 0 ? took : now() - began);
    return count ? 0 : 1;
}
