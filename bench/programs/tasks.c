/*
 * What runs in and beside the tasks of the deploy figures.
 *
 *   tasks serve [PORT]               a task: answers HTTP on PORT (80) until SIGTERM
 *   tasks sleep                      a task that gives the prober a network to stand in, until SIGTERM
 *   tasks probe NAME COUNT SECONDS   inside the overlay: ask the resolver for NAME and every address it gives for an
 *                                    HTTP answer, until COUNT different addresses have answered
 *   tasks first ADDRESS PORT SECONDS inside the overlay: send to ADDRESS until something comes back, an answer or a refusal
 *   tasks dns NAME SECONDS           questions for NAME, one after the other
 *   tasks nxdomain ADDRESS           a name server that knows no name: what both swarms ask beyond their own
 *
 * `probe` prints CLOCK_MONOTONIC in seconds at the first and at the last answer, `first` CLOCK_REALTIME (what engines say
 * of their containers); `dns` prints "COUNT SECONDS".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1024, STEP_MS = 5, QUESTION_MS = 20, CONNECT_MS = 100, ANSWER_MS = 1000 };

static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
static const char question[] = "GET / HTTP/1.0\r\n\r\n";

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void stop(int signal)
{
    (void)signal;
    _exit(0);
}

static void stop_when_told(void)
{
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL); /* process 1 of a container has no default action */
    sigaction(SIGINT, &action, NULL);
}

static int serve(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    stop_when_told();
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 128)) {
        perror("tasks: listen");
        return 1;
    }
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        char data[512];
        struct timeval limit = {.tv_sec = 1};
        if (fd < 0)
            continue;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (recv(fd, data, sizeof data, 0) > 0)
            send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
        close(fd);
    }
}

/* RFC 1035: one question for an A record, recursion desired. Returns its length. */
static size_t make_query(uint8_t *to, const char *name, uint16_t ident)
{
    static const uint8_t tail[] = {0, 0, 1, 0, 1};
    uint8_t *at = to + 12;
    memset(to, 0, 12);
    to[0] = (uint8_t)(ident >> 8), to[1] = (uint8_t)ident, to[2] = 1, to[5] = 1;
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        if (!length || length > 63 || (size_t)(at - to) + length > 250)
            return 0;
        *at++ = (uint8_t)length;
        memcpy(at, label, length);
        at += length;
        label += length + (label[length] == '.');
    }
    memcpy(at, tail, sizeof tail);
    return (size_t)(at - to) + sizeof tail;
}

static const uint8_t *skip_name(const uint8_t *at, const uint8_t *end)
{
    while (at < end && *at && *at < 0xc0)
        at += *at + 1;
    return at < end && *at ? at + 2 : at + 1;
}

/* A records of an answer; how many. */
static int read_addresses(const uint8_t *data, size_t length, struct in_addr *into, int most)
{
    const uint8_t *at = data + 12, *end = data + length;
    int found = 0;
    if (length < 12 || (data[3] & 15))
        return 0;
    for (int i = 0; i < data[5] && at < end; i++)
        at = skip_name(at, end) + 4;
    for (int i = 0; i < (data[6] << 8 | data[7]); i++) {
        at = skip_name(at, end);
        if (at + 10 > end)
            break;
        size_t size = (size_t)(at[8] << 8 | at[9]);
        if (at[1] == 1 && size == 4 && at + 14 <= end && found < most)
            memcpy(&into[found++], at + 10, 4);
        at += 10 + size;
    }
    return found;
}

static int resolver_socket(int kind)
{
    int fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(53)};
    struct timeval limit = {.tv_sec = 1};
    inet_pton(AF_INET, "127.0.0.11", &there.sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (kind == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&there, sizeof there)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int receive(int fd, uint8_t *into, size_t size)
{
    while (size) {
        ssize_t got = recv(fd, into, size, 0);
        if (got <= 0)
            return -1;
        into += got;
        size -= (size_t)got;
    }
    return 0;
}

/* Over TCP, since fifty addresses do not fit a plain UDP answer. Addresses found, 0 when there is no answer. */
static int resolve(const char *name, struct in_addr *into, int most)
{
    static uint8_t data[65537];
    int fd = resolver_socket(SOCK_STREAM), found = 0;
    if (fd < 0)
        return 0;
    size_t length = make_query(data + 2, name, 7);
    data[0] = (uint8_t)(length >> 8), data[1] = (uint8_t)length;
    if (length && send(fd, data, length + 2, MSG_NOSIGNAL) == (ssize_t)length + 2 && !receive(fd, data, 2)) {
        length = (size_t)(data[0] << 8 | data[1]);
        if (!receive(fd, data, length))
            found = read_addresses(data, length, into, most);
    }
    close(fd);
    return found;
}

struct target {
    struct in_addr address;
    int fd, asked, answered;
    double began; /* of this connection attempt */
};

static void begin(struct target *t)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(80), .sin_addr = t->address};
    t->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    t->asked = 0;
    t->began = now();
    if (connect(t->fd, (struct sockaddr *)&there, sizeof there) && errno != EINPROGRESS) {
        close(t->fd);
        t->fd = -1;
    }
}

/* One step of a target's conversation: asked once connected, answered on the first bytes. */
static void advance(struct target *t, short events)
{
    char data[512];
    ssize_t got;
    if (events & POLLOUT) {
        t->asked = 1;
        if (send(t->fd, question, sizeof question - 1, MSG_NOSIGNAL) < 0)
            events |= POLLERR;
    }
    got = events & (POLLIN | POLLERR | POLLHUP) ? recv(t->fd, data, sizeof data, 0) : -2;
    if (got > 12 && !memcmp(data, "HTTP/1.0 200", 12))
        t->answered = 1;
    if (got != -2 || now() - t->began > (t->asked ? ANSWER_MS : CONNECT_MS) / 1e3) {
        close(t->fd);
        t->fd = -1;
    }
}

static int probe(const char *name, int count, double seconds)
{
    static struct target targets[MOST];
    static struct pollfd waits[MOST];
    static struct in_addr found[MOST];
    double until = now() + seconds, first = 0, next_question = 0;
    int known = 0, answered = 0, at[MOST];
    while (answered < count) {
        if (now() > until) {
            fprintf(stderr, "tasks: %d addresses found, %d of %d answered within %g s\n", known, answered, count, seconds);
            return 1;
        }
        if (known < count && now() >= next_question) {
            int n = resolve(name, found, MOST);
            for (int i = 0; i < n; i++) {
                int j = 0;
                while (j < known && targets[j].address.s_addr != found[i].s_addr)
                    j++;
                if (j == known && known < MOST)
                    targets[known++] = (struct target){.address = found[i], .fd = -1};
            }
            next_question = now() + QUESTION_MS / 1e3;
        }
        int n = 0;
        for (int i = 0; i < known; i++) {
            if (targets[i].answered)
                continue;
            if (targets[i].fd < 0)
                begin(&targets[i]);
            if (targets[i].fd >= 0) {
                waits[n] = (struct pollfd){.fd = targets[i].fd, .events = targets[i].asked ? POLLIN : POLLOUT};
                at[n++] = i;
            }
        }
        poll(waits, (nfds_t)n, STEP_MS);
        int refused = 0;
        for (int i = 0; i < n; i++) {
            struct target *t = &targets[at[i]];
            advance(t, waits[i].revents);
            if (t->answered) {
                answered++;
                if (!first)
                    first = now();
            } else if (t->fd < 0) {
                refused = 1;
            }
        }
        if (refused || !n)
            usleep(STEP_MS * 1000); /* a refusal comes at once: do not spin on it */
    }
    printf("%.6f %.6f\n", first, now());
    return 0;
}

static int ask_dns(const char *name, double seconds)
{
    uint8_t data[4096];
    struct in_addr found[MOST];
    int fd = resolver_socket(SOCK_DGRAM);
    unsigned long count = 0;
    double began = now();
    while (fd >= 0 && now() < began + seconds) {
        size_t length = make_query(data, name, (uint16_t)count);
        ssize_t got;
        send(fd, data, length, 0);
        got = recv(fd, data, sizeof data, 0);
        if (got < 12 || !read_addresses(data, (size_t)got, found, MOST)) {
            fprintf(stderr, "tasks: no answer for %s\n", name);
            return 1;
        }
        count++;
    }
    printf("%lu %.6f\n", count, now() - began);
    return count ? 0 : 1;
}

/* RFC 1035 section 4.1.1: the question back as an answer, with RCODE 3. */
static size_t deny(uint8_t *data, ssize_t length)
{
    if (length < 12)
        return 0;
    data[2] = 0x80 | (data[2] & 1), data[3] = 0x83;
    memset(data + 6, 0, 6); /* the records of a question's other sections do not come back */
    const uint8_t *end = skip_name(data + 12, data + length) + 4;
    return end <= data + length ? (size_t)(end - data) : 0;
}

static int deny_all(const char *address)
{
    static uint8_t data[65537];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(53)};
    struct pollfd waits[2];
    stop_when_told();
    inet_pton(AF_INET, address, &here.sin_addr);
    for (int i = 0; i < 2; i++) {
        waits[i] = (struct pollfd){.fd = socket(AF_INET, (i ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0), .events = POLLIN};
        int on = 1;
        setsockopt(waits[i].fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(waits[i].fd, (struct sockaddr *)&here, sizeof here) || (i && listen(waits[i].fd, 64))) {
            perror("tasks: nxdomain");
            return 1;
        }
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        poll(waits, 2, -1);
        if (waits[0].revents) {
            ssize_t got = recvfrom(waits[0].fd, data, sizeof data, 0, (struct sockaddr *)&from, &size);
            sendto(waits[0].fd, data, deny(data, got), 0, (struct sockaddr *)&from, size);
        }
        if (waits[1].revents) {
            int fd = accept4(waits[1].fd, NULL, NULL, SOCK_CLOEXEC);
            struct timeval limit = {.tv_sec = 1};
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
            if (!receive(fd, data, 2) && !receive(fd, data + 2, (size_t)(data[0] << 8 | data[1]))) {
                size_t length = deny(data + 2, data[0] << 8 | data[1]);
                data[0] = (uint8_t)(length >> 8), data[1] = (uint8_t)length;
                send(fd, data, length + 2, MSG_NOSIGNAL);
            }
            close(fd);
        }
    }
}

/* A SYN every few milliseconds, each from a port of its own: what an unready path swallows is not waited for. */
static int first_sign(const char *address, int port, double seconds)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    double until = now() + seconds;
    if (inet_pton(AF_INET, address, &there.sin_addr) != 1)
        return 2;
    while (now() < until) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error = 0;
        socklen_t size = sizeof error;
        struct pollfd waiting = {.fd = fd, .events = POLLOUT};
        if (connect(fd, (struct sockaddr *)&there, sizeof there) && errno == EINPROGRESS)
            poll(&waiting, 1, STEP_MS);
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if ((waiting.revents & (POLLOUT | POLLERR)) && (!error || error == ECONNREFUSED)) {
            struct timespec t;
            clock_gettime(CLOCK_REALTIME, &t);
            printf("%.6f\n", (double)t.tv_sec + (double)t.tv_nsec / 1e9);
            return 0;
        }
        close(fd);
        usleep(500);
    }
    fprintf(stderr, "tasks: nothing came back from %s within %g s\n", address, seconds);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && !strcmp(argv[1], "serve"))
        return serve(argc > 2 ? atoi(argv[2]) : 80);
    if (argc == 2 && !strcmp(argv[1], "sleep")) {
        stop_when_told();
        for (;;)
            pause();
    }
    if (argc == 5 && !strcmp(argv[1], "probe") && atoi(argv[3]) <= MOST)
        return probe(argv[2], atoi(argv[3]), atof(argv[4]));
    if (argc == 5 && !strcmp(argv[1], "first"))
        return first_sign(argv[2], atoi(argv[3]), atof(argv[4]));
    if (argc == 4 && !strcmp(argv[1], "dns"))
        return ask_dns(argv[2], atof(argv[3]));
    if (argc == 3 && !strcmp(argv[1], "nxdomain"))
        return deny_all(argv[2]);
    fprintf(stderr, "usage: tasks serve [PORT] | sleep | probe NAME COUNT SECONDS | first ADDRESS PORT SECONDS | dns NAME SECONDS | nxdomain ADDRESS\n");
    return 2;
}
