/*
 * load: drives a simple-ipc server as hard as this machine allows, and says what it saw.
 *
 *   load PATH MODE CLIENTS SECONDS [REQUEST_BYTES] [NUMBER] [REQUEST_FILE SUFFIX]
 *
 * MODE connect   connect, one request, read the response, close; over and over
 *      keep      one connection a client, one request at a time
 *      pipeline  one connection a client, NUMBER requests in flight
 *      paced     one connection a client, NUMBER requests a second, whatever the server does
 *
 * Each client is a process, so that no lock and no thread of ours is measured. The request is `ping`, or
 * REQUEST_BYTES bytes in maximal packets, or what REQUEST_FILE holds. A response is whatever comes until
 * its flush packet or, with REQUEST_FILE (another protocol), until a read ends with SUFFIX; an
 * end of file before it is a failure. Prints one JSON object: requests, those of the client with the fewest,
 * failures, seconds, CPU seconds of the clients, bytes received, and latency percentiles in microseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_DATA 65516
#define BUCKETS 1024 /* 16 an octave, from 1 ns: a percentile is right within 4.5 % */
#define MAX_DEPTH 1024

struct report {
    uint64_t requests, failures, bytes, histogram[BUCKETS];
};

/* Where a response's reader stands between two reads. */
struct reader {
    char header[4];
    int header_bytes;
    size_t data_left;
};

static struct sockaddr_un address;
static char *request;
static size_t request_size;
static const char *suffix; /* NULL: the protocol is ours */
static int number = 16;
static char buffer[1 << 18];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int bucket(uint64_t ns)
{
    int octave = 63 - __builtin_clzll(ns | 16);
    return octave * 16 + (int)((ns >> (octave - 4)) & 15);
}

static double bucket_us(int index)
{
    double base = (double)(1ull << (index / 16));
    return base * (1 + (index % 16 + 0.5) / 16) / 1000;
}

static void build_request(size_t data_size)
{
    char *out = request = malloc(data_size + data_size / MAX_DATA * 4 + 16);
    if (data_size == 0) {
        memcpy(request, "0008ping0000", 12);
        request_size = 12;
        return;
    }
    while (data_size) {
        size_t part = data_size < MAX_DATA ? data_size : MAX_DATA;
        out += sprintf(out, "%04zx", part + 4);
        memset(out, 'x', part);
        out += part;
        data_size -= part;
    }
    memcpy(out, "0000", 4);
    request_size = (size_t)(out + 4 - request);
}

static void read_request(const char *path)
{
    FILE *file = fopen(path, "rb");
    request = malloc(65536);
    request_size = file ? fread(request, 1, 65536, file) : 0;
    if (file)
        fclose(file);
}

static int open_connection(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        if (errno != EAGAIN && errno != EINTR) {
            close(fd);
            return -1;
        }
    return fd;
}

static int send_request(int fd)
{
    size_t sent = 0;
    while (sent < request_size) {
        ssize_t n = send(fd, request + sent, request_size - sent, MSG_NOSIGNAL);
        if (n < 0)
            return -1;
        sent += (size_t)n;
    }
    return 0;
}

/* Consumes SIZE bytes of BUFFER; returns how many flush packets ended in them, or -1 for a bad length. */
static int count_flushes(struct reader *r, const char *data, size_t size)
{
    int flushes = 0;
    while (size) {
        if (r->data_left) {
            size_t part = r->data_left < size ? r->data_left : size;
            r->data_left -= part, data += part, size -= part;
            continue;
        }
        r->header[r->header_bytes++] = *data++, size--;
        if (r->header_bytes < 4)
            continue;
        char text[5] = {r->header[0], r->header[1], r->header[2], r->header[3], 0};
        long length = strtol(text, NULL, 16);
        r->header_bytes = 0;
        if (length == 0)
            flushes++;
        else if (length < 4)
            return -1;
        else
            r->data_left = (size_t)length - 4;
    }
    return flushes;
}

static int read_flushes(int fd, struct reader *r, uint64_t *bytes)
{
    ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n <= 0)
        return -1;
    *bytes += (uint64_t)n;
    if (suffix) {
        size_t length = strlen(suffix);
        return (size_t)n >= length && !memcmp(buffer + n - length, suffix, length);
    }
    if (n == 12 && !r->data_left && !r->header_bytes && !memcmp(buffer, "0008pong0000", 12))
        return 1;
    return count_flushes(r, buffer, (size_t)n);
}

static int exchange(int fd, struct report *report)
{
    struct reader r = {{0}, 0, 0};
    int flushes;
    if (send_request(fd) < 0)
        return -1;
    do
        flushes = read_flushes(fd, &r, &report->bytes);
    while (flushes == 0);
    return flushes;
}

static void count(struct report *report, uint64_t began)
{
    report->requests++;
    report->histogram[bucket(now_ns() - began)]++;
}

static void connecting_client(struct report *report, uint64_t until)
{
    uint64_t began;
    while ((began = now_ns()) < until) {
        int fd = open_connection();
        if (fd < 0 || exchange(fd, report) < 0)
            report->failures++;
        else
            count(report, began);
        if (fd >= 0)
            close(fd);
    }
}

static void keeping_client(struct report *report, uint64_t until)
{
    uint64_t began;
    int fd = open_connection();
    while ((began = now_ns()) < until) {
        if (fd < 0 || exchange(fd, report) < 0) {
            report->failures++;
            return;
        }
        count(report, began);
    }
}

static void sleep_until(uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

/* Latency counts from when the request was due: a server that stalls is not spared the ones it held up. */
static void paced_client(struct report *report, uint64_t until)
{
    uint64_t step = 1000000000u / (uint64_t)number, due = now_ns() + (uint64_t)getpid() * 7919 % step;
    int fd = open_connection();
    for (; due < until; due += step) {
        sleep_until(due);
        if (fd < 0 || exchange(fd, report) < 0) {
            report->failures++;
            return;
        }
        count(report, due);
    }
}

static void pipelining_client(struct report *report, uint64_t until)
{
    int depth = number < MAX_DEPTH ? number : MAX_DEPTH;
    static uint64_t began[MAX_DEPTH];
    uint64_t sent = 0, received = 0;
    struct reader r = {{0}, 0, 0};
    int fd = open_connection();
    while (now_ns() < until || received < sent) {
        static char batch[MAX_DEPTH * 16];
        size_t filled = 0;
        while (sent - received < (uint64_t)depth && now_ns() < until) {
            began[sent++ % (uint64_t)depth] = now_ns();
            memcpy(batch + filled, request, request_size);
            filled += request_size;
        }
        if (filled && send(fd, batch, filled, MSG_NOSIGNAL) != (ssize_t)filled)
            break;
        if (received == sent)
            break;
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        int flushes = n <= 0 ? -1 : count_flushes(&r, buffer, (size_t)n);
        if (flushes < 0)
            break;
        report->bytes += (uint64_t)n;
        while (flushes--)
            count(report, began[received++ % (uint64_t)depth]);
    }
    report->failures += sent - received;
}

static double percentile(const uint64_t *histogram, uint64_t total, double share)
{
    uint64_t seen = 0, rank = (uint64_t)(share * (double)total);
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += histogram[i]) > rank)
            return bucket_us(i);
    return 0;
}

static void print_report(const struct report *reports, int clients, double seconds)
{
    struct report sum = {0};
    uint64_t least = UINT64_MAX;
    struct rusage usage;
    for (int c = 0; c < clients; c++) {
        sum.requests += reports[c].requests;
        if (reports[c].requests < least)
            least = reports[c].requests;
        sum.failures += reports[c].failures;
        sum.bytes += reports[c].bytes;
        for (int i = 0; i < BUCKETS; i++)
            sum.histogram[i] += reports[c].histogram[i];
    }
    getrusage(RUSAGE_CHILDREN, &usage);
    printf("{\"least\": %llu, ", (unsigned long long)least);
    printf("\"requests\": %llu, \"failures\": %llu, \"seconds\": %.6f, \"bytes\": %llu, \"cpu\": %.3f, ",
           (unsigned long long)sum.requests, (unsigned long long)sum.failures, seconds,
           (unsigned long long)sum.bytes,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
               + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    printf("\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p999\": %.1f}\n",
           percentile(sum.histogram, sum.requests, 0.5), percentile(sum.histogram, sum.requests, 0.9),
           percentile(sum.histogram, sum.requests, 0.99), percentile(sum.histogram, sum.requests, 0.999));
}

static void run_client(const char *mode, struct report *report, uint64_t until)
{
    if (!strcmp(mode, "connect"))
        connecting_client(report, until);
    else if (!strcmp(mode, "keep"))
        keeping_client(report, until);
    else if (!strcmp(mode, "paced"))
        paced_client(report, until);
    else
        pipelining_client(report, until);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: load PATH connect|keep|pipeline|paced CLIENTS SECONDS"
                        " [REQUEST_BYTES] [NUMBER] [REQUEST_FILE SUFFIX]\n");
        return 2;
    }
    int clients = atoi(argv[3]);
    struct report *reports = mmap(NULL, (size_t)clients * sizeof *reports, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    build_request(argc > 5 ? (size_t)atol(argv[5]) : 0);
    if (argc > 6 && atoi(argv[6]) > 0)
        number = atoi(argv[6]);
    if (argc > 8) {
        read_request(argv[7]);
        suffix = argv[8];
    }
    uint64_t began = now_ns(), until = began + (uint64_t)(atof(argv[4]) * 1e9);
    for (int c = 0; c < clients; c++)
        if (fork() == 0) {
            run_client(argv[2], &reports[c], until);
            _exit(0);
        }
    while (wait(NULL) > 0)
        ;
    print_report(reports, clients, (double)(now_ns() - began) / 1e9);
    return 0;
}
