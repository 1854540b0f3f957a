/*
 * The fast path, compiled: a request that comes whole in one read and is answered by one write.
 *
 * It promises what `fastpath.PurePath` promises, step for step; that class is the specification, and
 * tests/contract/test_fastpath.py runs the same routine on both. What is gained is the interpreter's share of each
 * request (docs/performance.md); where this is not compiled, nothing but that is lost.
 *
 * It runs in a worker, in the thread of the handler. The interpreter's lock is released while it waits for a client,
 * and signals are looked for before each request, since a handler that is compiled itself runs no bytecode in between.
 *
 * Limited API of Python 3.11: one build serves every later version.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE /* ppoll */
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef MSG_CMSG_CLOEXEC
#define CLOEXEC MSG_CMSG_CLOEXEC /* so that a handler's subprocess does not hold a client */
#else
#define CLOEXEC 0
#endif
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS; Python ignores SIGPIPE */
#endif

#define HEADER 4                 /* bytes of a packet's length */
#define MAX_PACKET 65520         /* docs/protocol.md section 1 */
#define MAX_DATA (MAX_PACKET - HEADER)
#define RECEIVE_SIZE 65536       /* bytes; any message that is one packet */
#define NANOSECONDS 1000000000ULL

/* The same as in platform/unix/poller.py. */
#define MOST_VAIN 16
#define SKIPPED 64
#define LONG_YIELD_NS 1000000ULL
#define LEAST_PAUSE_NS 50000000ULL
#define MOST_PAUSE_NS 2000000000ULL

/* Outcomes; the same numbers as in fastpath.py. */
enum outcome {
    TURN_OVER, SILENT, ENDED, GONE, RAISED, PARTIAL, RESPONSE, UNSENT, LIMIT, EMPTY, CLOSED, OTHER, DONE, FORKED,
    BROKEN = -1
};

/* scoreboard.Phase, in the low bits of the word LENT. */
enum phase { TAKING = 1, TAKEN = 1, READING = 2, HANDLING = 3, WRITING = 5, BETWEEN = 6 };

/* Where the words of a worker's slot are: scoreboard.py says, when a path is made. */
struct layout {
    int lent, since, began, last, watched, requests, ok, bytes_in, bytes_out, busy, handler, whole, cancelled, probes;
    int taken, queue_wait, ring_head, ring_tail, ring, ring_size;
};

/* Looking for input for a moment before sleeping: platform/unix/poller.py says when that is worth it. */
struct busy_poll {
    uint64_t paused_until, pause_ns;
    int vain, skip;              /* looks in a row that found nothing; waits until the next look */
};

typedef struct {
    PyObject_HEAD
    Py_buffer view;              /* of the slot; held for as long as this object lives */
    uint64_t *words;
    struct layout at;
    PyObject *handler, *request_type, *timeout, *tell_busy, *on_answered, *adopt;
    Py_ssize_t most_in, most_out;
    uint64_t long_wait_ns;       /* a client that waited so long may have given up */
    uint64_t span_ns;            /* for which a client has its turn: other connections may wait */
    long turns;                  /* requests in a turn at most */
    uint64_t busy_poll_ns;       /* for which input is looked for before sleeping, 0 for never */
    struct busy_poll for_client, for_queue;
    unsigned long long next_check;
    char forked;                 /* this is a process that the handler has forked */
    char hung_up;                /* the client of the outcome ENDED has closed both directions */
    PyObject *data, *response, *unsent, *error;
    PyObject *connection;        /* the one that was taken last */
    unsigned long long number, waited;
    PyObject *message;           /* what was taken and is no plain connection: (message, raw, file) */
    Py_ssize_t size;
    char in[RECEIVE_SIZE + 2048]; /* of a client, or one message of the queue */
    char out[MAX_PACKET + HEADER];
} Path;

static PyObject *context_name;   /* "_context" */

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NANOSECONDS + (uint64_t)now.tv_nsec;
}

/* -- the wire: what pktline.decode_exact and pktline.encode do ---------------------------------------------------- */

static int hexadecimal(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    return -1;                   /* capitals are the decoder's to take */
}

/* The size on the wire of the message at `from`, if it is a whole one of at most one packet; else 0. */
static Py_ssize_t message_size(const char *from, Py_ssize_t available)
{
    Py_ssize_t length = 0;
    if (available < HEADER)
        return 0;
    for (int i = 0; i < HEADER; i++) {
        int digit = hexadecimal(from[i]);
        if (digit < 0)
            return 0;
        length = length << 4 | digit;
    }
    if (length == 0)
        return HEADER;           /* the empty message: a flush alone */
    if (length < HEADER || length > MAX_PACKET || available < length + HEADER)
        return 0;
    return memcmp(from + length, "0000", HEADER) == 0 ? length + HEADER : 0;
}

static Py_ssize_t encode(char *into, const char *data, Py_ssize_t size)
{
    Py_ssize_t length = size + HEADER;
    if (size == 0) {
        memcpy(into, "0000", HEADER);
        return HEADER;
    }
    for (int i = 0; i < HEADER; i++)
        into[i] = "0123456789abcdef"[length >> (12 - 4 * i) & 15];
    memcpy(into + HEADER, data, (size_t)size);
    memcpy(into + length, "0000", HEADER);
    return length + HEADER;
}

/* -- counting: what Stats.answered does --------------------------------------------------------------------------- */

static int bucket(uint64_t nanoseconds)
{
    if (nanoseconds < 1024)
        return 0;
    if (nanoseconds >= 1ULL << 42)
        return 127;
    int octave = 64 - __builtin_clzll(nanoseconds);
    return octave * 4 + (int)(nanoseconds >> (octave - 3)) - 48;
}

static void count_answered(Path *self, Py_ssize_t bytes_in, Py_ssize_t bytes_out, uint64_t waited)
{
    uint64_t *words = self->words, now = monotonic_ns(), took = now - words[self->at.began];
    words[self->at.last] = now;
    words[self->at.since] = 0;
    words[self->at.requests]++;
    words[self->at.ok]++;
    words[self->at.bytes_in] += (uint64_t)bytes_in;
    words[self->at.bytes_out] += (uint64_t)bytes_out;
    words[self->at.busy] += took;
    words[self->at.handler + bucket(took)]++;
    words[self->at.whole + bucket(took + waited)]++;
}

/* -- one request -------------------------------------------------------------------------------------------------- */

static void keep(PyObject **place, PyObject *object)
{
    PyObject *before = *place;
    *place = object;
    Py_XDECREF(before);
}

static PyObject *make_request(Path *self, PyObject *connection, const char *payload, Py_ssize_t size, uint64_t began)
{
    PyObject *bytes = PyBytes_FromStringAndSize(payload, size);
    if (bytes == NULL)
        return NULL;
    PyObject *request = PyObject_CallFunctionObjArgs(self->request_type, bytes, NULL);
    Py_DECREF(bytes);
    if (request == NULL)
        return NULL;
    PyObject *since = PyLong_FromUnsignedLongLong(began);
    PyObject *context = since == NULL ? NULL : PyTuple_Pack(3, connection, since, self->timeout);
    Py_XDECREF(since);
    if (context == NULL || PyObject_SetAttr(request, context_name, context) < 0) {
        Py_XDECREF(context);
        Py_DECREF(request);
        return NULL;
    }
    Py_DECREF(context);
    return request;
}

static int call(PyObject *callable)
{
    PyObject *result = PyObject_CallObject(callable, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* The watchdog must look out for a request that may take only so long; it is told once, and then says so in the slot. */
static int prepare(Path *self)
{
    return self->timeout != Py_None && !self->words[self->at.watched] ? call(self->tell_busy) : 0;
}

static enum outcome raised(Path *self)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    keep(&self->error, error);
    return RAISED;
}

/* Send the reply in `out`; how much went out, or -1 if the client is gone. */
static Py_ssize_t send_reply(Path *self, int fd, Py_ssize_t size)
{
    ssize_t sent;
    do
        sent = send(fd, self->out, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
    return sent;
}

static int is_plain(Path *self, PyObject *response)
{
    PyTypeObject *type = Py_TYPE(response);
    return (type == &PyBytes_Type || type == (PyTypeObject *)self->request_type) &&
           PyBytes_Size(response) <= self->most_out;
}

static enum outcome reply(Path *self, int fd, PyObject *response, uint64_t number, uint64_t waited)
{
    Py_ssize_t length = PyBytes_Size(response);
    Py_ssize_t size = encode(self->out, PyBytes_AsString(response), length);
    self->words[self->at.lent] = number << 3 | WRITING;
    Py_ssize_t sent = send_reply(self, fd, size);
    if (sent < 0)
        return GONE;
    if (sent < size) {
        keep(&self->unsent, PyBytes_FromStringAndSize(self->out + sent, size - sent));
        return self->unsent == NULL ? BROKEN : UNSENT;
    }
    self->words[self->at.lent] = number << 3 | BETWEEN;
    count_answered(self, self->size, length, waited);
    if (self->on_answered != Py_None) {
        PyObject *noted = PyObject_CallFunction(self->on_answered, "nnK", self->size, length, (unsigned long long)waited);
        Py_XDECREF(noted);
        if (noted == NULL)
            return BROKEN;
    }
    return TURN_OVER;
}

/* Answer one request. */
static enum outcome answer(Path *self, PyObject *connection, int fd, const char *payload, Py_ssize_t size,
                           uint64_t number, uint64_t waited)
{
    uint64_t *words = self->words, began = monotonic_ns();
    words[self->at.lent] = number << 3 | HANDLING;
    words[self->at.began] = words[self->at.since] = began;
    self->size = size;
    PyObject *request = make_request(self, connection, payload, size, began);
    if (request == NULL || prepare(self) < 0) {
        Py_XDECREF(request);
        return BROKEN;
    }
    PyObject *response = PyObject_CallFunctionObjArgs(self->handler, request, NULL);
    Py_DECREF(request);
    if (response == NULL)
        return raised(self);
    if (self->forked) { /* the answer to the client is the worker's */
        Py_DECREF(response);
        return FORKED;
    }
    enum outcome outcome = is_plain(self, response) ? reply(self, fd, response, number, waited) : RESPONSE;
    if (outcome == RESPONSE || outcome == UNSENT)
        keep(&self->response, response);
    else
        Py_DECREF(response);
    return outcome;
}

/* -- what one read has brought, and the next reads ---------------------------------------------------------------- */

/* Leave what has come from `from` on to the slower code that goes on from here. */
static enum outcome leave(Path *self, enum outcome outcome, const char *from, const char *end)
{
    keep(&self->data, PyBytes_FromStringAndSize(from, end - from));
    return self->data == NULL ? BROKEN : outcome;
}

static enum outcome answer_all(Path *self, PyObject *connection, int fd, Py_ssize_t received, uint64_t number,
                               uint64_t waited)
{
    const char *from = self->in, *end = self->in + received;
    for (long count = 0; from < end; count++) {
        Py_ssize_t size = message_size(from, end - from);
        Py_ssize_t payload = size > 2 * HEADER ? size - 2 * HEADER : 0;
        if (count) /* what is left was read already: no other process could read it again */
            self->words[self->at.lent] = number << 3 | READING;
        if (size == 0 || payload > self->most_in || count == self->turns ||
            (count && self->words[self->at.requests] >= self->next_check))
            return leave(self, PARTIAL, from, end);
        enum outcome outcome = answer(self, connection, fd, from + HEADER, payload, number, waited);
        if (outcome == RESPONSE || outcome == UNSENT)
            return leave(self, outcome, from, end);
        if (outcome != TURN_OVER)
            return outcome;
        waited = 0;
        from += size;
    }
    return self->words[self->at.requests] >= self->next_check ? LIMIT : TURN_OVER;
}

/* Let other processes run and look again: 1 for input, -1 for none yet, 0 if it is not worth it any more. */
static int look_again(struct busy_poll *state, struct pollfd *entry, uint64_t until)
{
    uint64_t before = monotonic_ns();
    if (before >= until) {
        if (++state->vain >= MOST_VAIN)
            state->skip = SKIPPED;
        return 0;
    }
    sched_yield();
    if (monotonic_ns() - before > LONG_YIELD_NS) { /* there is more to do than CPUs: sleepers are woken sooner */
        state->pause_ns = state->pause_ns ? state->pause_ns * 2 : LEAST_PAUSE_NS;
        if (state->pause_ns > MOST_PAUSE_NS)
            state->pause_ns = MOST_PAUSE_NS;
        state->paused_until = before + state->pause_ns;
        return 0;
    }
    if (poll(entry, 1, 0) <= 0)
        return -1;
    state->vain = 0;
    state->pause_ns -= state->pause_ns / 64;
    return 1;
}

/* Look for input for a moment: to be woken costs more than most clients take to ask again. */
static int busy_poll(const Path *self, struct busy_poll *state, struct pollfd *entry)
{
    uint64_t now;
    int found = -1;
    if (self->busy_poll_ns == 0)
        return 0;
    if (state->skip > 0) {
        state->skip--;
        return 0;
    }
    if ((now = monotonic_ns()) < state->paused_until)
        return 0;
    Py_BEGIN_ALLOW_THREADS
    while (found < 0)
        found = look_again(state, entry, now + self->busy_poll_ns);
    Py_END_ALLOW_THREADS
    return found;
}

/* Wait for a client: what poll(2) says of it, 0 if it stays silent for so long, -2 if a signal handler raised. */
static int wait_for(Path *self, int fd, uint64_t patience)
{
    struct pollfd entry = {fd, POLLIN, 0};
    if (patience && (poll(&entry, 1, 0) > 0 || busy_poll(self, &self->for_client, &entry)))
        return entry.revents;
    uint64_t now = monotonic_ns(), until = now + patience;
    for (;;) {
        uint64_t left = now < until ? until - now : 0; /* a handler's timer may interrupt each wait: see PEP 475 */
#ifdef __linux__
        struct timespec time = {(time_t)(left / NANOSECONDS), (long)(left % NANOSECONDS)};
#endif
        int ready, reason;
        Py_BEGIN_ALLOW_THREADS
#ifdef __linux__
        ready = ppoll(&entry, 1, &time, NULL);
#else
        ready = poll(&entry, 1, (int)((left + 999999) / 1000000));
#endif
        reason = errno;
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            return -2;
        if (ready >= 0 || reason != EINTR)
            return ready > 0 ? entry.revents : 0;
        now = monotonic_ns();
    }
}

/* Read what is there: -1 for nothing, 0 for the end, -2 if a signal handler raised. */
static Py_ssize_t receive(Path *self, int fd)
{
    for (;;) {
        ssize_t received = recv(fd, self->in, RECEIVE_SIZE, MSG_DONTWAIT);
        int reason = errno;
        if (PyErr_CheckSignals() < 0)
            return -2;
        if (received >= 0)
            return received;
        if (reason == EAGAIN || reason == EWOULDBLOCK)
            return -1;
        if (reason != EINTR)
            return 0;            /* reset: as good as its end */
    }
}

static int has_closed(int fd)
{
    struct pollfd entry = {fd, 0, 0};
    return poll(&entry, 1, 0) > 0;
}

static int has_asked(int fd)
{
    char byte;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* After a long wait: whether the client has given up, and what it may have asked with it. */
static int has_left(Path *self, int fd)
{
    if (!has_closed(fd))
        return 0;
    self->words[has_asked(fd) ? self->at.cancelled : self->at.probes]++;
    return 1;
}

static enum outcome serve(Path *self, PyObject *connection, int fd, uint64_t number, uint64_t waited,
                          uint64_t patience, int asked)
{
    uint64_t until = 0, *lent = &self->words[self->at.lent];
    if (waited > self->long_wait_ns && has_left(self, fd)) {
        self->hung_up = 1;
        return ENDED;
    }
    for (long turn = 0; turn < self->turns; turn++) {
        if (asked) {
            int ready = wait_for(self, fd, patience);
            if (ready == -2)
                return BROKEN;
            if (ready == 0)
                return SILENT;
            if (ready & (POLLHUP | POLLERR)) { /* both directions: there is no reader left */
                self->words[self->at.cancelled] += (uint64_t)has_asked(fd);
                self->hung_up = 1;
                return ENDED;
            }
        }
        uint64_t before = *lent;
        *lent = number << 3 | READING; /* before it is read: no other process could read it again */
        Py_ssize_t received = receive(self, fd);
        if (received == -2)
            return BROKEN;
        if (received <= 0) {
            *lent = before;
            if (received == 0) {
                self->hung_up = (char)has_closed(fd);
                return ENDED;
            }
            if (asked)
                return SILENT;
            asked = 1;
            continue;
        }
        asked = 1;
        enum outcome outcome = answer_all(self, connection, fd, received, number, waited);
        if (outcome != TURN_OVER)
            return outcome;
        waited = 0;
        if (until == 0)
            until = self->words[self->at.began] + self->span_ns;
        if (self->words[self->at.last] > until)
            break;
    }
    return TURN_OVER;
}

PyDoc_STRVAR(run_doc, "run(connection, number, waited, patience, asked) -> outcome\n\nAs `fastpath.PurePath.run`.");

static PyObject *path_run(Path *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "run() takes 5 arguments");
        return NULL;
    }
    int fd = PyObject_AsFileDescriptor(args[0]), asked = PyObject_IsTrue(args[4]);
    unsigned long long number = PyLong_AsUnsignedLongLong(args[1]), waited = PyLong_AsUnsignedLongLong(args[2]),
                       patience = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    enum outcome outcome = serve(self, args[0], fd, number, waited, patience, asked);
    return outcome == BROKEN ? NULL : PyLong_FromLong(outcome);
}

/* -- the queue: what messages.parse_passed does for a connection without state, and Worker._forget after its end -------- */

#define PASSED_SIZE 32 /* messages.PASSED_SIZE: number, queued_ns, accepted, stage, padding, began_ns */

struct passed {
    uint64_t number, queued_ns;
    uint8_t accepted, stage, padding[6];
    uint64_t began_ns;
};

/* Take one message: its size, 0 at the end of the queue, -1 for none, -2 with an exception set. */
static ssize_t take_message(Path *self, int queue, int fds[2], int *fd_count)
{
    char control[CMSG_SPACE(2 * sizeof(int))];
    struct iovec vector = {self->in, sizeof self->in};
    struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size;
    do
        size = recvmsg(queue, &header, MSG_DONTWAIT | CLOEXEC);
    while (size < 0 && errno == EINTR);
    *fd_count = 0;
    if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return -1;
        if (errno == ECONNRESET) /* the master has closed its end, with bytes unread that a handler has written */
            return 0;
        PyErr_SetFromErrno(PyExc_OSError);
        return -2;
    }
    for (struct cmsghdr *each = CMSG_FIRSTHDR(&header); each != NULL; each = CMSG_NXTHDR(&header, each))
        if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_RIGHTS) {
            *fd_count = (int)((each->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(each), (size_t)*fd_count * sizeof(int));
        }
    return size;
}

static PyObject *number_or_none(int present, int fd)
{
    return present ? PyLong_FromLong(fd) : Py_NewRef(Py_None);
}

/* Leave a message that is no plain connection to the code that parses all of them. */
static enum outcome leave_message(Path *self, ssize_t size, const int fds[2], int fd_count)
{
    PyObject *raw = number_or_none(fd_count > 0, fds[0]), *file = number_or_none(fd_count > 1, fds[1]);
    keep(&self->message, raw && file ? Py_BuildValue("y#NN", self->in, (Py_ssize_t)size, raw, file) : NULL);
    return self->message == NULL ? BROKEN : OTHER;
}

/* Write the number of an ended connection into the ring, if there is room: scoreboard.push_ended. */
static int push_ended(Path *self, uint64_t number)
{
    uint64_t *words = self->words, head = words[self->at.ring_head];
    if (head - words[self->at.ring_tail] >= (uint64_t)self->at.ring_size)
        return 0;
    words[self->at.ring + (int)(head % (uint64_t)self->at.ring_size)] = number;
    __atomic_store_n(&words[self->at.ring_head], head + 1, __ATOMIC_RELEASE); /* the master reads the number after it */
    return 1;
}

/* The client has ended between two requests: end this copy, and let the master know that it can close its own. */
static enum outcome finish(Path *self, int fd)
{
    uint64_t *lent = &self->words[self->at.lent];
    if (!push_ended(self, self->number))
        return ENDED;
    if ((*lent & 7) == TAKEN && !self->hung_up)
        self->words[self->at.probes]++;
    if (!self->hung_up) /* a half-closed client waits for the end; it acts on every copy */
        shutdown(fd, SHUT_RDWR);
    __atomic_store_n(lent, 0, __ATOMIC_RELEASE); /* after the ring: the audit takes a connection in neither for lost */
    PyObject *closed = PyObject_CallMethod(self->connection, "close", NULL);
    keep(&self->connection, NULL);
    Py_XDECREF(closed);
    return closed == NULL ? BROKEN : DONE;
}

/* The same, and the slot says meanwhile that something is being taken: the master's audit waits for that. */
static ssize_t take_openly(Path *self, int queue, int fds[2], int *fd_count)
{
    uint64_t *lent = &self->words[self->at.lent];
    __atomic_store_n(lent, TAKING, __ATOMIC_SEQ_CST);
    ssize_t size = take_message(self, queue, fds, fd_count);
    if (size <= 0)
        *lent = 0;
    return size;
}

static enum outcome take(Path *self, int queue, uint64_t patience, int ring)
{
    int fds[2], fd_count;
    struct passed passed;
    struct pollfd entry = {queue, POLLIN, 0};
    uint64_t *lent = &self->words[self->at.lent];
    ssize_t size = take_openly(self, queue, fds, &fd_count);
    if (size == -1 && patience && busy_poll(self, &self->for_queue, &entry))
        size = take_openly(self, queue, fds, &fd_count);
    if (size <= 0)
        return size == -2 ? BROKEN : size == 0 ? CLOSED : EMPTY;
    if (size != PASSED_SIZE || fd_count != 1)
        return leave_message(self, size, fds, fd_count);
    memcpy(&passed, self->in, sizeof passed);
    if (passed.stage != 0)
        return leave_message(self, size, fds, fd_count);
    uint64_t *words = self->words, now = monotonic_ns(), waited = now > passed.queued_ns ? now - passed.queued_ns : 0;
    *lent = passed.number << 3 | TAKEN;
    words[self->at.taken]++;
    if (passed.accepted)
        words[self->at.queue_wait + bucket(waited)]++;
    self->number = passed.number, self->waited = waited;
    PyObject *connection = PyObject_CallFunction(self->adopt, "i", fds[0]);
    if (connection == NULL) {
        close(fds[0]);
        return BROKEN;
    }
    keep(&self->connection, connection);
    enum outcome outcome = serve(self, connection, fds[0], passed.number, waited, patience, 0);
    return outcome == ENDED && ring ? finish(self, fds[0]) : outcome;
}

PyDoc_STRVAR(take_doc, "take(queue, patience, ring) -> outcome\n\nAs `fastpath.PurePath.take`.");

static PyObject *path_take(Path *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "take() takes 3 arguments");
        return NULL;
    }
    int queue = PyObject_AsFileDescriptor(args[0]), ring = PyObject_IsTrue(args[2]);
    unsigned long long patience = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    enum outcome outcome = take(self, queue, patience, ring);
    return outcome == BROKEN ? NULL : PyLong_FromLong(outcome);
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static int read_layout(struct layout *at, PyObject *tuple)
{
    return PyArg_ParseTuple(tuple, "iiiiiiiiiiiiiiiiiiii", &at->lent, &at->since, &at->began, &at->last, &at->watched,
                            &at->requests, &at->ok, &at->bytes_in, &at->bytes_out, &at->busy, &at->handler, &at->whole,
                            &at->cancelled, &at->probes, &at->taken, &at->queue_wait, &at->ring_head, &at->ring_tail,
                            &at->ring, &at->ring_size)
               ? 0
               : -1;
}

static int path_init(Path *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"words", "layout", "handler", "request_type", "most_in", "most_out", "timeout",
                            "tell_busy", "on_answered", "adopt", "long_wait_ns", "turns", "span_ns",
                            "busy_poll_ns", NULL};
    PyObject *words, *layout, *handler, *request_type, *timeout, *busy, *answered, *adopt;
    unsigned long long long_wait_ns, span_ns, busy_poll_ns;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO!OOnnOOOOKlKK", names, &words, &PyTuple_Type, &layout, &handler,
                                     &request_type, &self->most_in, &self->most_out, &timeout, &busy, &answered,
                                     &adopt, &long_wait_ns, &self->turns, &span_ns, &busy_poll_ns))
        return -1;
    if (self->words != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a path is made once");
        return -1;
    }
    if (read_layout(&self->at, layout) < 0 || PyObject_GetBuffer(words, &self->view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        return -1;
    self->words = self->view.buf;
    if (self->view.len < (self->at.ring + self->at.ring_size) * (Py_ssize_t)sizeof(uint64_t)) {
        PyErr_SetString(PyExc_ValueError, "words: too short for a slot");
        return -1;
    }
    self->long_wait_ns = long_wait_ns, self->span_ns = span_ns, self->busy_poll_ns = busy_poll_ns;
    self->next_check = UINT64_MAX;
    self->handler = Py_NewRef(handler);
    self->request_type = Py_NewRef(request_type);
    self->timeout = Py_NewRef(timeout);
    self->tell_busy = Py_NewRef(busy);
    self->on_answered = Py_NewRef(answered);
    self->adopt = Py_NewRef(adopt);
    return 0;
}

/* The worker has its path, and the path calls methods of the worker: a cycle. */
#define PLACES(self) {&(self)->handler, &(self)->request_type, &(self)->timeout, &(self)->tell_busy, \
                      &(self)->on_answered, &(self)->adopt, &(self)->data, &(self)->response, &(self)->unsent, \
                      &(self)->error, &(self)->connection, &(self)->message}

static int path_traverse(Path *self, visitproc visit, void *arg)
{
    PyObject **places[] = PLACES(self);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        Py_VISIT(*places[i]);
    Py_VISIT(Py_TYPE((PyObject *)self));
    return 0;
}

static int path_clear(Path *self)
{
    PyObject **places[] = PLACES(self);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        keep(places[i], NULL);
    return 0;
}

static void path_dealloc(Path *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    path_clear(self);
    if (self->words != NULL)
        PyBuffer_Release(&self->view);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Give the object away: nothing of a request stays behind here. */
static PyObject *release(PyObject **place)
{
    PyObject *object = *place;
    *place = NULL;
    return object != NULL ? object : Py_NewRef(Py_None);
}

PyDoc_STRVAR(rest_doc, "rest() -> (data, response, unsent, error)\n\n"
                       "As `fastpath.PurePath.rest`: what the last outcome leaves to do, once.");

static PyObject *path_rest(Path *self, PyObject *unused)
{
    return Py_BuildValue("NNNN", release(&self->data), release(&self->response), release(&self->unsent), release(&self->error));
}

static PyMethodDef path_methods[] = {
    {"run", (PyCFunction)(void (*)(void))path_run, METH_FASTCALL, run_doc},
    {"take", (PyCFunction)(void (*)(void))path_take, METH_FASTCALL, take_doc},
    {"rest", (PyCFunction)path_rest, METH_NOARGS, rest_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef path_members[] = {
    {"next_check", T_ULONGLONG, offsetof(Path, next_check), 0, "requests after which `LIMIT` is said"},
    {"forked", T_BOOL, offsetof(Path, forked), 0, "set in a process that the handler has forked"},
    {"hung_up", T_BOOL, offsetof(Path, hung_up), READONLY, "whether the client that has ended closed both directions"},
    {"connection", T_OBJECT, offsetof(Path, connection), 0, "the one that was taken last"},
    {"message", T_OBJECT, offsetof(Path, message), READONLY, "what was taken and is no plain connection"},
    {"number", T_ULONGLONG, offsetof(Path, number), READONLY, "of the connection that was taken last"},
    {"waited", T_ULONGLONG, offsetof(Path, waited), READONLY, "ns for which that was queued"},
    {"size", T_PYSSIZET, offsetof(Path, size), READONLY, "bytes of the last request"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot path_slots[] = {
    {Py_tp_doc, "The fast path of one worker: see `fastpath.PurePath`."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, path_init},
    {Py_tp_dealloc, path_dealloc},
    {Py_tp_traverse, path_traverse},
    {Py_tp_clear, path_clear},
    {Py_tp_methods, path_methods},
    {Py_tp_members, path_members},
    {0, NULL},
};

static PyType_Spec path_spec = {
    "ipcsrv.worker._fastpath.CompiledPath", sizeof(Path), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, path_slots,
};

/* -- the module --------------------------------------------------------------------------------------------------- */

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &path_spec, NULL);
    if (type == NULL || PyModule_AddObjectRef(module, "CompiledPath", type) < 0) {
        Py_XDECREF(type);
        return -1;
    }
    Py_DECREF(type);
    context_name = PyUnicode_InternFromString("_context");
    return context_name == NULL ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "ipcsrv.worker._fastpath", "The fast path, compiled: see ipcsrv/worker/fastpath.py.", 0, NULL,
    module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fastpath(void)
{
    return PyModuleDef_Init(&definition);
}
