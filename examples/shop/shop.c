/*
 * The shop: one small HTTP service that plays web, order and store, to show who crossed which host.
 *
 * Each instance answers GET / with a JSON document whose "chain" starts with itself and goes on with the answer of the
 * next service, called by name (NEXT). The store is the end: it adds the greeting of its config and a fingerprint of
 * its secret. `shop health` is the container's healthcheck.
 *
 * A thread per connection; SIGTERM stops listening, lets requests under way end, and exits 0.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { REQUEST_MAX = 4096, ANSWER_MAX = 32768, CALL_SECONDS = 3, DRAIN_SECONDS = 5 };

static const char *service, *os_name, *host, *task, *next_host, *port;
static atomic_int busy;
static volatile sig_atomic_t stopping;

struct text { /* a bounded string that only grows */
    size_t length, size;
    char *data;
};

static void put(struct text *to, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int more = vsnprintf(to->data + to->length, to->size - to->length, format, args);
    va_end(args);
    if (more > 0)
        to->length += (size_t)more < to->size - to->length ? (size_t)more : to->size - to->length - 1;
}

static void put_json(struct text *to, const char *value)
{
    put(to, "\"");
    for (; *value; value++) {
        unsigned char c = (unsigned char)*value;
        if (c == '"' || c == '\\')
            put(to, "\\%c", c);
        else if (c < 0x20)
            put(to, "\\u%04x", c);
        else
            put(to, "%c", c);
    }
    put(to, "\"");
}

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static ssize_t read_file(const char *path, char *into, size_t size)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return -1;
    size_t length = fread(into, 1, size - 1, file);
    fclose(file);
    into[length] = 0;
    return (ssize_t)length;
}

/* FNV-1a, 64 bits: shows that the secret arrived without showing it. */
static uint64_t fingerprint(const char *data, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3u;
    return hash;
}

static void limit_time(int fd, int seconds)
{
    struct timeval limit = {.tv_sec = seconds};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static int send_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        data += sent;
        length -= (size_t)sent;
    }
    return 0;
}

/* GET http://name:port/path. Returns the body inside `buffer`, or NULL with a sentence in `why`. */
static char *get(const char *name, const char *at, const char *path, char *buffer, size_t size, struct text *why)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    int code = getaddrinfo(name, at, &hints, &found);
    if (code) {
        put(why, "cannot find %s: %s", name, gai_strerror(code));
        return NULL;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    limit_time(fd, CALL_SECONDS);
    code = connect(fd, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    size_t length = 0;
    if (code == 0) {
        struct text request = {.size = size, .data = buffer};
        put(&request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, name);
        code = send_all(fd, buffer, request.length);
        while (code == 0 && length < size - 1) {
            ssize_t got = recv(fd, buffer + length, size - 1 - length, 0);
            if (got < 0)
                code = -1;
            if (got <= 0)
                break;
            length += (size_t)got;
        }
    }
    int failed = errno;
    close(fd);
    if (code) {
        put(why, "%s:%s: %s", name, at, failed == EAGAIN || failed == EINPROGRESS ? "timed out" : strerror(failed));
        return NULL;
    }
    buffer[length] = 0;
    char *body = strstr(buffer, "\r\n\r\n");
    if (strncmp(buffer, "HTTP/1.", 7) || !body) {
        put(why, "%s:%s did not speak HTTP", name, at);
        return NULL;
    }
    if (strncmp(buffer + 8, " 200 ", 5)) {
        put(why, "%s: %s", name, body + 4);
        return NULL;
    }
    return body + 4;
}

static void describe_self(struct text *to, int fd)
{
    struct sockaddr_in here = {0};
    socklen_t size = sizeof here;
    getsockname(fd, (struct sockaddr *)&here, &size);
    char address[INET_ADDRSTRLEN] = "";
    inet_ntop(AF_INET, &here.sin_addr, address, sizeof address);
    const char *names[] = {"service", "os", "host", "address", "task"};
    const char *values[] = {service, os_name, host, address, task};
    for (int i = 0; i < 5; i++) {
        put(to, i ? ", " : "{");
        put_json(to, names[i]);
        put(to, ": ");
        put_json(to, values[i]);
    }
}

/* The end of the chain: what the store alone knows. Returns 0, or -1 with a sentence in `why`. */
static int describe_store(struct text *to, struct text *why)
{
    char text[1024];
    const char *path = setting("CONFIG_FILE", "/etc/store/greeting");
    ssize_t length = read_file(path, text, sizeof text);
    if (length >= 0) {
        text[strcspn(text, "\r\n")] = 0;
        put(to, ", \"greeting\": ");
        put_json(to, text);
        path = setting("SECRET_FILE", "/run/secrets/store_password");
        length = read_file(path, text, sizeof text);
    }
    if (length < 0) {
        put(why, "%s: %s", path, strerror(errno));
        return -1;
    }
    put(to, ", \"secret_fnv1a\": \"%016llx\"", (unsigned long long)fingerprint(text, (size_t)length));
    return 0;
}

/* Write the JSON answer to GET /; returns the HTTP status. */
static int answer(struct text *to, int fd)
{
    char why_data[512] = "", *buffer = malloc(ANSWER_MAX);
    struct text why = {.size = sizeof why_data, .data = why_data};
    int status = 200;
    put(to, "{\"chain\": [");
    describe_self(to, fd);
    if (!*next_host) {
        if (!strcmp(service, "store") && describe_store(to, &why))
            status = 500;
        put(to, "}");
    } else {
        put(to, "}");
        char *body = buffer ? get(next_host, port, "/", buffer, ANSWER_MAX, &why) : NULL;
        char *rest = body ? strstr(body, "[") : NULL, *end = body ? strrchr(body, ']') : NULL;
        if (rest && end && end > rest)
            put(to, ", %.*s", (int)(end - rest - 1), rest + 1);
        else
            status = 502;
    }
    free(buffer);
    if (status != 200) {
        to->length = 0;
        put(to, "{\"error\": ");
        put_json(to, why_data);
    } else {
        put(to, "]");
    }
    put(to, "}\n");
    return status;
}

static void *serve(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char request[REQUEST_MAX], *body = malloc(ANSWER_MAX), head[256];
    size_t length = 0;
    limit_time(fd, CALL_SECONDS * 4);
    while (length < sizeof request - 1) {
        ssize_t got = recv(fd, request + length, sizeof request - 1 - length, 0);
        if (got <= 0)
            break;
        length += (size_t)got;
        request[length] = 0;
        if (strstr(request, "\r\n\r\n"))
            break;
    }
    request[length] = 0;
    if (body && length) {
        struct text text = {.size = ANSWER_MAX, .data = body}, top = {.size = sizeof head, .data = head};
        int status = 200;
        body[0] = 0;
        if (!strncmp(request, "GET /health", 11))
            put(&text, "{\"healthy\": true}\n");
        else if (!strncmp(request, "GET / ", 6) || !strncmp(request, "GET /?", 6))
            status = answer(&text, fd);
        else
            status = 404, put(&text, "{\"error\": \"there is only GET /\"}\n");
        const char *phrase = status == 200 ? "OK" : status == 404 ? "Not Found" : "Bad Gateway";
        put(&top, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
            status, phrase, text.length);
        if (send_all(fd, head, top.length) == 0)
            send_all(fd, body, text.length);
        if (strncmp(request, "GET /health", 11))
            printf("%s on %s (%s): %.*s %d\n", service, host, os_name, (int)strcspn(request, "\r\n"), request, status);
    }
    free(body);
    shutdown(fd, SHUT_WR);
    close(fd);
    busy--;
    return NULL;
}

static void stop(int signal)
{
    (void)signal;
    stopping = 1;
}

static int listen_on(const char *at)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(at))};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here) || listen(fd, 512)) {
        fprintf(stderr, "shop: cannot listen on port %s: %s\n", at, strerror(errno));
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv)
{
    service = argc > 1 ? argv[1] : setting("SERVICE", "web");
    os_name = setting("NODE_OS", "linux");
    host = setting("NODE", "?");
    task = setting("TASK", "?");
    next_host = setting("NEXT", "");
    port = setting("PORT", "80");
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(service, "health")) {
        char buffer[1024], why_data[256] = "";
        struct text why = {.size = sizeof why_data, .data = why_data};
        if (get("127.0.0.1", port, "/health", buffer, sizeof buffer, &why))
            return 0;
        fprintf(stderr, "%s\n", why_data);
        return 1;
    }
    /* Signals are let in only while waiting for connections, so none is missed between check and wait, and the threads,
     * which inherit the mask, never see one. */
    sigset_t ours, waiting;
    sigemptyset(&ours);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ours, &waiting);
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    int listener = listen_on(port);
    printf("%s on %s (%s): listening on port %s%s%s\n", service, host, os_name, port, *next_host ? ", calling " : "",
           next_host);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, 256 * 1024);
    struct pollfd ready = {.fd = listener, .events = POLLIN};
    while (!stopping) {
        if (ppoll(&ready, 1, NULL, &waiting) <= 0)
            continue;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        pthread_t thread;
        busy++;
        if (pthread_create(&thread, &detached, serve, (void *)(intptr_t)fd)) {
            close(fd);
            busy--;
        }
    }
    close(listener);
    for (int i = 0; busy && i < DRAIN_SECONDS * 100; i++)
        usleep(10000);
    printf("%s on %s (%s): stopped\n", service, host, os_name);
    return 0;
}
