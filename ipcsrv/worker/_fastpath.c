/*
 * The straight path, compiled: a request that came whole in one read and is answered by one write.
 *
 * It promises what `straight.PurePath` promises, step for step; that class is the specification, and
 * tests/contract/test_straight.py runs the same routine on both.  What is gained is the interpreter's share of each
 * request (docs/performance.md); where this is not compiled, nothing but that is lost.
 *
 * It runs in a worker, in the thread of the handler.  The interpreter's lock is released while it waits for a client,
 * and signals are looked for before each request, since a handler that is compiled itself runs no bytecode in between.
 *
 * Limited API of Python 3.11: one build serves every later version.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE /* accept4, struct ucred */
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS; Python ignores SIGPIPE */
#endif

#define HEADER 4                 /* bytes of a packet's length */
#define MAX_PACKET 65520         /* PROTOCOL.md section 1 */
#define MAX_DATA (MAX_PACKET - HEADER)
#define RECEIVE_SIZE 65536       /* bytes; any message that is one packet */
#define MOST_PIPELINED 64        /* requests of one read that are answered before others have their turn */
#define MOST_KNOWN 8             /* users that are remembered; others are asked about each time */
#define NANOSECONDS 1000000000ULL

/* What came of it; the same numbers as in straight.py. */
enum outcome { ANSWERED, SILENT, ENDED, GONE, RAISED, CONVERSE, RESPONSE, UNSENT, LIMIT, NOBODY, STRANGER, BROKEN = -1 };

/* Where the words of a worker's slot are: scoreboard.py says, when a path is made. */
struct layout {
    int since, began, last, current, watched, slow;
    int requests, ok, bytes_in, bytes_out, busy, handler, whole, connections;
};

typedef struct {
    PyObject_HEAD
    Py_buffer view;              /* of the slot; held for as long as we live */
    uint64_t *words;
    struct layout at;
    PyObject *handler, *request_type, *timeout, *tell_busy, *secure, *on_answered, *adopt;
    Py_ssize_t most_in, most_out;
    uint64_t slow_ns, slow_memory; /* of tally.py: what is slow, and for how many requests that is remembered */
    uint64_t span_ns;              /* for which turns go on: somebody else may wait */
    unsigned long long next_check;
    int unsecured;
    char learns;
    struct { uid_t uid; gid_t gid; } known[MOST_KNOWN]; /* users of whom it was found that they may ask */
    int known_count;
    PyObject *data, *response, *unsent, *error, *connection;
    Py_ssize_t size;
    char in[RECEIVE_SIZE];
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

/* -- counting: what Tally.answered does --------------------------------------------------------------------------- */

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
    words[self->at.current] = 0;
    words[self->at.requests]++;
    words[self->at.ok]++;
    words[self->at.bytes_in] += (uint64_t)bytes_in;
    words[self->at.bytes_out] += (uint64_t)bytes_out;
    words[self->at.busy] += took;
    words[self->at.handler + bucket(took)]++;
    words[self->at.whole + bucket(took + waited)]++;
    if (took > self->slow_ns)
        words[self->at.slow] = self->slow_memory;
    else if (words[self->at.slow])
        words[self->at.slow]--;
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

/* Before the handler runs: others must not be lost with us, and the master must look out for a request that others
 * wait for, or that may take only so long (it is told once, for it then says so in our slot). */
static int prepare(Path *self, int others)
{
    if (self->unsecured && call(self->secure) < 0)
        return -1;
    if ((others || self->timeout != Py_None) && !self->words[self->at.watched])
        return call(self->tell_busy);
    return 0;
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

static enum outcome reply(Path *self, int fd, PyObject *response, uint64_t waited)
{
    Py_ssize_t length = PyBytes_Size(response);
    Py_ssize_t size = encode(self->out, PyBytes_AsString(response), length);
    Py_ssize_t sent = send_reply(self, fd, size);
    if (sent < 0)
        return GONE;
    if (sent < size) {
        keep(&self->unsent, PyBytes_FromStringAndSize(self->out + sent, size - sent));
        return self->unsent == NULL ? BROKEN : UNSENT;
    }
    count_answered(self, self->size, length, waited);
    if (self->on_answered != Py_None) {
        PyObject *noted = PyObject_CallFunction(self->on_answered, "nnK", self->size, length, (unsigned long long)waited);
        Py_XDECREF(noted);
        if (noted == NULL)
            return BROKEN;
    }
    return ANSWERED;
}

/* Answer one request.  The connection is the caller's, who goes on with it by what comes of this. */
static enum outcome answer(Path *self, PyObject *connection, int fd, const char *payload, Py_ssize_t size,
                           uint64_t waited, int others)
{
    uint64_t *words = self->words, began = monotonic_ns();
    words[self->at.began] = words[self->at.since] = began;
    self->size = size;
    PyObject *request = make_request(self, connection, payload, size, began);
    if (request == NULL || prepare(self, others) < 0) {
        Py_XDECREF(request);
        return BROKEN;
    }
    PyObject *response = PyObject_CallFunctionObjArgs(self->handler, request, NULL);
    Py_DECREF(request);
    if (response == NULL)
        return raised(self);
    enum outcome outcome = is_plain(self, response) ? reply(self, fd, response, waited) : RESPONSE;
    if (outcome == RESPONSE || outcome == UNSENT)
        keep(&self->response, response);
    else
        Py_DECREF(response);
    return outcome;
}

/* -- what one read has brought, and the next reads ---------------------------------------------------------------- */

/* Leave what has come from `from` on to whoever goes on from here. */
static enum outcome hand_over(Path *self, enum outcome outcome, const char *from, const char *end)
{
    keep(&self->data, PyBytes_FromStringAndSize(from, end - from));
    return self->data == NULL ? BROKEN : outcome;
}

static enum outcome answer_all(Path *self, PyObject *connection, int fd, Py_ssize_t received, uint64_t waited,
                               uint64_t number, int others)
{
    const char *from = self->in, *end = self->in + received;
    for (int count = 0; from < end; count++) {
        Py_ssize_t size = message_size(from, end - from);
        Py_ssize_t payload = size > 2 * HEADER ? size - 2 * HEADER : 0;
        if (size == 0 || payload > self->most_in || count == MOST_PIPELINED ||
            (count && self->words[self->at.requests] >= self->next_check))
            return hand_over(self, CONVERSE, from, end);
        self->words[self->at.current] = number;
        enum outcome outcome = answer(self, connection, fd, from + HEADER, payload, waited, others);
        if (outcome == RESPONSE || outcome == UNSENT)
            return hand_over(self, outcome, from, end);
        if (outcome != ANSWERED)
            return outcome;
        waited = 0;
        from += size;
    }
    return self->words[self->at.requests] >= self->next_check ? LIMIT : ANSWERED;
}

/* Read what a client has said, waiting as long as its socket says if `flags` do not forbid it: -1 for nothing, 0 for
 * its end, -2 if a signal handler raised. */
static Py_ssize_t receive(Path *self, int fd, int flags)
{
    for (;;) {
        ssize_t received;
        int reason;
        if (flags & MSG_DONTWAIT) {
            received = recv(fd, self->in, RECEIVE_SIZE, flags);
            reason = errno;
        } else {
            Py_BEGIN_ALLOW_THREADS
            received = recv(fd, self->in, RECEIVE_SIZE, flags);
            reason = errno;
            Py_END_ALLOW_THREADS
        }
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

static enum outcome serve(Path *self, PyObject *connection, int fd, int flags, long turns, uint64_t waited,
                          uint64_t number, int others)
{
    uint64_t until = 0;
    for (long turn = 0; turn < turns; turn++) {
        self->words[self->at.current] = number; /* from before it is read: a request that was read has no other owner */
        Py_ssize_t received = receive(self, fd, flags);
        if (received == -2)
            return BROKEN;
        if (received <= 0) {
            self->words[self->at.current] = 0;
            return received == 0 ? ENDED : SILENT;
        }
        enum outcome outcome = answer_all(self, connection, fd, received, waited, number, others);
        if (outcome != ANSWERED)
            return outcome;
        waited = 0;
        if (until == 0)
            until = self->words[self->at.began] + self->span_ns;
        if (self->words[self->at.last] > until)
            break;
    }
    return ANSWERED;
}

PyDoc_STRVAR(run_doc, "run(connection, descriptor, flags, turns, waited, number, others) -> outcome\n\n"
                      "As `straight.PurePath.run`.");

static PyObject *path_run(Path *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError, "run() takes 7 arguments");
        return NULL;
    }
    long fd = PyLong_AsLong(args[1]), flags = PyLong_AsLong(args[2]), turns = PyLong_AsLong(args[3]);
    unsigned long long waited = PyLong_AsUnsignedLongLong(args[4]), number = PyLong_AsUnsignedLongLong(args[5]);
    int others = PyObject_IsTrue(args[6]);
    if (PyErr_Occurred())
        return NULL;
    enum outcome outcome = serve(self, args[0], (int)fd, (int)flags, turns, waited, number, others);
    return outcome == BROKEN ? NULL : PyLong_FromLong(outcome);
}

/* -- new connections ---------------------------------------------------------------------------------------------- */

static int accept_next(int listener)
{
#ifdef SOCK_CLOEXEC
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
#else
    int fd = accept(listener, NULL, NULL);
    if (fd >= 0)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
#endif
}

/* Whether it is already known that this client may ask (PROTOCOL.md section 5). */
static int is_known(Path *self, int fd)
{
#ifdef SO_PEERCRED
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0)
        for (int i = 0; i < self->known_count; i++)
            if (self->known[i].uid == peer.uid && self->known[i].gid == peer.gid)
                return 1;
#endif
    return 0;
}

/* Accept the next client: `self->connection` is it, as a stranger. */
static enum outcome receive_client(Path *self, int listener, int *descriptor)
{
    int fd = accept_next(listener);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return NOBODY;
        PyErr_SetFromErrno(PyExc_OSError);
        return BROKEN;
    }
    self->words[self->at.connections]++;
    PyObject *connection = PyObject_CallFunction(self->adopt, "i", fd);
    if (connection == NULL) {
        close(fd);
        return BROKEN;
    }
    keep(&self->connection, connection);
    *descriptor = fd;
    return STRANGER;
}

static enum outcome welcome(Path *self, int listener, int others)
{
    int fd;
    enum outcome outcome = receive_client(self, listener, &fd);
    if (outcome == STRANGER && is_known(self, fd))
        outcome = serve(self, self->connection, fd, MSG_DONTWAIT, 1, 0, 0, others);
    return outcome;
}

PyDoc_STRVAR(receive_doc, "receive(listener) -> outcome\n\nAs `straight.PurePath.receive`.");

static PyObject *path_receive(Path *self, PyObject *listener)
{
    int unused, descriptor = PyObject_AsFileDescriptor(listener);
    enum outcome outcome = descriptor < 0 ? BROKEN : receive_client(self, descriptor, &unused);
    return outcome == BROKEN ? NULL : PyLong_FromLong(outcome);
}

PyDoc_STRVAR(welcome_doc, "welcome(listener, others) -> outcome\n\nAs `straight.PurePath.welcome`.");

static PyObject *path_welcome(Path *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "welcome() takes 2 arguments");
        return NULL;
    }
    int listener = PyObject_AsFileDescriptor(args[0]), others = PyObject_IsTrue(args[1]);
    if (listener < 0 || others < 0)
        return NULL;
    enum outcome outcome = welcome(self, listener, others);
    return outcome == BROKEN ? NULL : PyLong_FromLong(outcome);
}

PyDoc_STRVAR(know_doc, "know(uid, gid)\n\nAs `straight.PurePath.know`.");

static PyObject *path_know(Path *self, PyObject *args)
{
    unsigned long uid, gid;
    if (!PyArg_ParseTuple(args, "kk", &uid, &gid))
        return NULL;
    for (int i = 0; i < self->known_count; i++)
        if (self->known[i].uid == (uid_t)uid && self->known[i].gid == (gid_t)gid)
            return Py_NewRef(Py_None);
    if (self->known_count < MOST_KNOWN) {
        self->known[self->known_count].uid = (uid_t)uid;
        self->known[self->known_count++].gid = (gid_t)gid;
    }
    return Py_NewRef(Py_None);
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static int read_layout(struct layout *at, PyObject *tuple)
{
    return PyArg_ParseTuple(tuple, "iiiiiiiiiiiiii", &at->since, &at->began, &at->last, &at->current, &at->watched,
                            &at->slow, &at->requests, &at->ok, &at->bytes_in, &at->bytes_out, &at->busy, &at->handler,
                            &at->whole, &at->connections)
               ? 0
               : -1;
}

static int path_init(Path *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"words", "layout", "handler", "request_type", "most_in", "most_out", "timeout",
                            "tell_busy", "secure", "on_answered", "adopt", "slow_ns", "slow_memory", "span_ns", NULL};
    PyObject *words, *layout, *handler, *request_type, *timeout, *busy, *secure, *answered, *adopt;
    unsigned long long slow_ns, slow_memory, span_ns;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO!OOnnOOOOOKKK", names, &words, &PyTuple_Type, &layout, &handler,
                                     &request_type, &self->most_in, &self->most_out, &timeout, &busy, &secure,
                                     &answered, &adopt, &slow_ns, &slow_memory, &span_ns))
        return -1;
    if (self->words != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a path is made once");
        return -1;
    }
    if (read_layout(&self->at, layout) < 0 || PyObject_GetBuffer(words, &self->view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        return -1;
    self->words = self->view.buf;
    if (self->view.len < (self->at.whole + 128) * (Py_ssize_t)sizeof(uint64_t)) {
        PyErr_SetString(PyExc_ValueError, "words: too short for a slot");
        return -1;
    }
    self->slow_ns = slow_ns, self->slow_memory = slow_memory, self->span_ns = span_ns;
    self->next_check = UINT64_MAX;
#ifdef SO_PEERCRED
    self->learns = 1;
#endif
    self->handler = Py_NewRef(handler);
    self->request_type = Py_NewRef(request_type);
    self->timeout = Py_NewRef(timeout);
    self->tell_busy = Py_NewRef(busy);
    self->secure = Py_NewRef(secure);
    self->on_answered = Py_NewRef(answered);
    self->adopt = Py_NewRef(adopt);
    return 0;
}

static void path_dealloc(Path *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject **places[] = {&self->handler, &self->request_type, &self->timeout, &self->tell_busy, &self->secure,
                           &self->on_answered, &self->adopt, &self->data, &self->response, &self->unsent,
                           &self->error, &self->connection};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        keep(places[i], NULL);
    if (self->words != NULL)
        PyBuffer_Release(&self->view);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Give the object away: nothing of a request stays behind here. */
static PyObject *take(PyObject **place)
{
    PyObject *object = *place;
    *place = NULL;
    return object != NULL ? object : Py_NewRef(Py_None);
}

PyDoc_STRVAR(rest_doc, "rest() -> (data, response, unsent, error)\n\n"
                       "As `straight.PurePath.rest`: what the last outcome leaves to do, once.");

static PyObject *path_rest(Path *self, PyObject *unused)
{
    return Py_BuildValue("NNNN", take(&self->data), take(&self->response), take(&self->unsent), take(&self->error));
}

static PyMethodDef path_methods[] = {
    {"run", (PyCFunction)(void (*)(void))path_run, METH_FASTCALL, run_doc},
    {"receive", (PyCFunction)path_receive, METH_O, receive_doc},
    {"welcome", (PyCFunction)(void (*)(void))path_welcome, METH_FASTCALL, welcome_doc},
    {"know", (PyCFunction)path_know, METH_VARARGS, know_doc},
    {"rest", (PyCFunction)path_rest, METH_NOARGS, rest_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef path_members[] = {
    {"next_check", T_ULONGLONG, offsetof(Path, next_check), 0, "requests after which `LIMIT` is said"},
    {"unsecured", T_INT, offsetof(Path, unsecured), 0, "whether `secure` is to be called before the next handler"},
    {"learns", T_BOOL, offsetof(Path, learns), READONLY, "whether `know` is of use"},
    {"connection", T_OBJECT, offsetof(Path, connection), READONLY, "the one that was welcomed last"},
    {"size", T_PYSSIZET, offsetof(Path, size), READONLY, "bytes of the last request"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot path_slots[] = {
    {Py_tp_doc, "The straight path of one worker: see `straight.PurePath`."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, path_init},
    {Py_tp_dealloc, path_dealloc},
    {Py_tp_methods, path_methods},
    {Py_tp_members, path_members},
    {0, NULL},
};

static PyType_Spec path_spec = {"ipcsrv.worker._fastpath.CompiledPath", sizeof(Path), 0, Py_TPFLAGS_DEFAULT, path_slots};

/* -- the module --------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(has_said_doc, "has_said(descriptor) -> True, False at the client's end, None if it is silent\n\n"
                           "As `Connection.has_said`, without an exception on the way.");

static PyObject *has_said(PyObject *module, PyObject *descriptor)
{
    char byte;
    long fd = PyLong_AsLong(descriptor);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    ssize_t peeked = recv((int)fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (peeked < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return Py_NewRef(Py_None);
    return PyBool_FromLong(peeked > 0);
}

static PyMethodDef functions[] = {
    {"has_said", has_said, METH_O, has_said_doc},
    {NULL, NULL, 0, NULL},
};

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
    PyModuleDef_HEAD_INIT, "ipcsrv.worker._fastpath", "The straight path, compiled: see ipcsrv/straight.py.", 0, functions,
    module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fastpath(void)
{
    return PyModuleDef_Init(&definition);
}
