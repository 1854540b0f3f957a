/* One exchange: the request goes out and the response comes in at the same time, neither is ever held whole. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipcsrvc.h"

#define MAX_PACKET 65520
#define MAX_DATA (MAX_PACKET - 4)
#define MAX_FAILURE 1100 /* bytes; a longer packet is no failure reply */

/* The reasons of pktline.py, word for word. */
#define REASON_HEADER "a packet header that is not four hexadecimal digits: "
#define REASON_LONG_PACKET "a packet of %ld bytes, more than the largest (65520)"
#define REASON_DELIM "a delim packet (0001), which means nothing here"
#define REASON_RESPONSE_END "a response-end packet (0002), which means nothing here"
#define REASON_ILLEGAL "a packet of the illegal length 3, which means nothing here"

struct state {
    int connection;
    const char *path;
    const struct deadline *deadline;
    struct request request;
    struct sink *sink;

    char packet[MAX_PACKET + 4]; /* of the request, with the flush behind it */
    size_t packet_used, packet_sent;
    bool request_ended; /* the flush is in `packet` */
    bool deaf;          /* the server takes no more */
    bool sent, received; /* at least one byte */

    char header[4];
    size_t header_used;
    size_t left;              /* bytes of the present packet still to come */
    bool long_packet;         /* too long for a failure reply */
    char part[MAX_FAILURE];   /* of a shorter packet */
    size_t part_used;
    char held[MAX_FAILURE]; /* a packet that is a failure reply if the end of file follows */
    size_t held_used;
    bool complete;

    char out[1 << 16]; /* small pieces are written together */
    size_t out_used;
};

/* -- output -------------------------------------------------------------------------------------------------------- */

static int write_out(const char *data, size_t size) {
    while (size) {
        ssize_t written = write(1, data, size);
        if (written < 0 && errno == EPIPE)
            return EXIT_BROKEN_PIPE;
        if (written < 0 && errno == EAGAIN) { /* the caller has made standard output non-blocking */
            poll(&(struct pollfd){.fd = 1, .events = POLLOUT}, 1, -1);
            continue;
        }
        if (written < 0 && errno != EINTR)
            return complain_system(errno);
        if (written > 0) {
            data += written;
            size -= (size_t)written;
        }
    }
    return 0;
}

static int flush_out(struct state *s) {
    size_t size = s->out_used;
    s->out_used = 0;
    return write_out(s->out, size);
}

static int release(struct state *s, const char *data, size_t size) {
    struct sink *sink = s->sink;
    if (sink->data != NULL) {
        if (size > sink->size - sink->used)
            size = sink->size - sink->used;
        memcpy(sink->data + sink->used, data, size);
        sink->used += size;
        return 0;
    }
    if (size > sizeof s->out - s->out_used) {
        int code = flush_out(s);
        if (code)
            return code;
    }
    if (size > sizeof s->out)
        return write_out(data, size);
    memcpy(s->out + s->out_used, data, size);
    s->out_used += size;
    return 0;
}

static int release_held(struct state *s) {
    size_t size = s->held_used;
    s->held_used = 0;
    return size ? release(s, s->held, size) : 0;
}

/* -- the response -------------------------------------------------------------------------------------------------- */

static int protocol_error(struct state *s, const char *reason) {
    flush_out(s);
    complain(TEXT_PROTOCOL_ERROR, s->path, reason, "");
    return EXIT_PROTOCOL_ERROR;
}

/* A header as Python shows bytes: b'...'. */
static char *shown_header(const char header[4]) {
    char text[32], *at = text;
    char quote = memchr(header, '\'', 4) && !memchr(header, '"', 4) ? '"' : '\'';
    at += sprintf(at, "b%c", quote);
    for (int i = 0; i < 4; i++) {
        unsigned char c = (unsigned char)header[i];
        const char *simple = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : NULL;
        if (simple)
            at += sprintf(at, "%s", simple);
        else if (c == quote)
            at += sprintf(at, "\\%c", c);
        else
            at += sprintf(at, c < 0x20 || c > 0x7e ? "\\x%02x" : "%c", c);
    }
    sprintf(at, "%c", quote);
    return duplicate(text);
}

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int read_header(struct state *s) {
    long size = 0;
    for (int i = 0; i < 4; i++) {
        int value = digit(s->header[i]);
        size = value < 0 || size < 0 ? -1 : size * 16 + value;
    }
    s->header_used = 0;
    if (size < 0)
        return protocol_error(s, formatted("%s%s", REASON_HEADER, shown_header(s->header)));
    if (size > MAX_PACKET)
        return protocol_error(s, formatted(REASON_LONG_PACKET, size));
    if (size >= 1 && size <= 3)
        return protocol_error(s, size == 1 ? REASON_DELIM : size == 2 ? REASON_RESPONSE_END : REASON_ILLEGAL);
    if (size == 0) {
        s->complete = true;
        return release_held(s);
    }
    s->left = (size_t)size - 4;
    s->long_packet = s->left > MAX_FAILURE;
    return 0;
}

static int take_data(struct state *s, const char *data, size_t size) {
    s->left -= size;
    if (s->long_packet) {
        int code = release_held(s);
        return code ? code : release(s, data, size);
    }
    memcpy(s->part + s->part_used, data, size);
    s->part_used += size;
    if (s->left)
        return 0;
    int code = release_held(s);
    size_t whole = s->part_used;
    s->part_used = 0;
    if (code)
        return code;
    if (whole < 4 || memcmp(s->part, "ERR ", 4) != 0)
        return release(s, s->part, whole);
    memcpy(s->held, s->part, whole);
    s->held_used = whole;
    return 0;
}

static int decode(struct state *s, const char *data, size_t size) {
    while (size && !s->complete) {
        size_t count;
        int code = 0;
        if (s->left) {
            count = size < s->left ? size : s->left;
            code = take_data(s, data, count);
        } else {
            count = 4 - s->header_used < size ? 4 - s->header_used : size;
            memcpy(s->header + s->header_used, data, count);
            s->header_used += count;
            if (s->header_used == 4)
                code = read_header(s);
        }
        if (code)
            return code;
        data += count;
        size -= count;
    }
    return 0;
}

/* A handler runs only when it has the whole request: part of a response says so only then. */
static enum progress progress(const struct state *s) {
    bool whole = s->request_ended && s->packet_sent == s->packet_used;
    return !s->sent ? NOTHING_SENT : whole && s->received ? RESPONSE_BEGUN : REQUEST_SENT;
}

/* The server closed where a flush was due: its reason, if the last packet is one. */
static int explain_end(struct state *s) {
    flush_out(s);
    if (!s->held_used || s->left || s->header_used) {
        complain(TEXTS_LOST[progress(s)], s->path, "", "");
        return EXIT_LOST;
    }
    struct span code = {s->held + 4, s->held_used - 4}, message = {"", 0};
    const char *space = memchr(code.data, ' ', code.size);
    if (space != NULL) {
        message = (struct span){space + 1, code.size - (size_t)(space + 1 - code.data)};
        code.size = (size_t)(space - code.data);
    }
    const struct failure *failure = failures;
    while (failure->code != NULL &&
           (strlen(failure->code) != code.size || memcmp(failure->code, code.data, code.size) != 0))
        failure++;
    complain_of(failure->text, s->path, code, message);
    return failure->exit_code;
}

static int receive(struct state *s) {
    char data[1 << 16];
    ssize_t size = recv(s->connection, data, sizeof data, 0);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (size <= 0) /* a reset connection says no more than a closed one */
        return explain_end(s);
    s->received = true;
    int code = decode(s, data, (size_t)size);
    return code ? code : flush_out(s);
}

/* -- the request --------------------------------------------------------------------------------------------------- */

/* Make the next packet of `size` bytes of data, which lie behind its header already. */
static void frame(struct state *s, size_t size, bool last) {
    s->packet_used = s->packet_sent = 0;
    if (size) {
        char header[5];
        snprintf(header, sizeof header, "%04x", (unsigned)(size + 4) & 0xffff);
        memcpy(s->packet, header, 4);
        s->packet_used = size + 4;
    }
    if (last) {
        memcpy(s->packet + s->packet_used, "0000", 4);
        s->packet_used += 4;
        s->request_ended = true;
    }
}

static void next_packet(struct state *s) {
    size_t size = s->request.size < MAX_DATA ? s->request.size : MAX_DATA;
    memcpy(s->packet + 4, s->request.data, size);
    s->request.data += size;
    s->request.size -= size;
    frame(s, size, s->request.size == 0);
}

static int read_input(struct state *s) {
    ssize_t size = read(0, s->packet + 4, MAX_DATA);
    if (size < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return 0;
        complain("\1: \2", "standard input", strerror(errno), "");
        return EXIT_FAILED;
    }
    frame(s, (size_t)size, size == 0);
    return 0;
}

static void send_packet(struct state *s) {
    ssize_t size = send(s->connection, s->packet + s->packet_sent, s->packet_used - s->packet_sent, MSG_NOSIGNAL);
    if (size < 0 && errno != EAGAIN && errno != EINTR)
        s->deaf = true; /* it takes no more, but its reason may be there to read */
    if (size > 0) {
        s->packet_sent += (size_t)size;
        s->sent = true;
    }
}

static int timed_out(struct state *s) {
    char text[32];
    flush_out(s);
    complain(TEXTS_TIMEOUT[progress(s)], s->path, shown_timeout(s->deadline, text), "");
    return EXIT_TIMEOUT;
}

/* Wait for what can be done next, and do it. */
static int step(struct state *s) {
    bool pending = s->packet_sent < s->packet_used;
    if (!pending && !s->request_ended && !s->deaf && s->request.data != NULL) {
        next_packet(s);
        pending = true;
    }
    bool reading = !pending && !s->request_ended && !s->deaf;
    struct pollfd ready[2] = {{.fd = s->connection, .events = POLLIN}, {.fd = reading ? 0 : -1, .events = POLLIN}};
    if (pending && !s->deaf)
        ready[0].events |= POLLOUT;
    int left = remaining_ms(s->deadline);
    int count = left == 0 ? 0 : poll(ready, 2, left);
    if (count == 0)
        return timed_out(s);
    if (count < 0)
        return errno == EINTR ? 0 : complain_system(errno);
    if (pending && !s->deaf && ready[0].revents & (POLLOUT | POLLERR | POLLHUP))
        send_packet(s);
    if (ready[0].revents & (POLLIN | POLLERR | POLLHUP))
        return receive(s);
    return ready[1].revents ? read_input(s) : 0;
}

int exchange(int connection, const char *path, struct request request, const struct deadline *deadline,
             struct sink *sink) {
    struct state *s = calloc(1, sizeof *s);
    if (s == NULL)
        return complain_system(ENOMEM);
    s->connection = connection;
    s->path = path;
    s->deadline = deadline;
    s->request = request;
    s->sink = sink;
    if (request.data != NULL) { /* nearly always the socket takes all of it at once */
        next_packet(s);
        send_packet(s);
    }
    int code = 0;
    while (!code && !s->complete)
        code = step(s);
    if (!code)
        code = flush_out(s);
    free(s);
    return code;
}
