/*
 * Accepting and passing, compiled: what the dispatcher does with nearly every new connection, without the interpreter.
 *
 * `Dispatcher._accept_plainly` is the specification; tests/contract/test_passing.py runs the same routine on both. Where
 * this is not compiled, nothing but time is lost. It runs in the master and never waits longer than it is told.
 *
 * Limited API of Python 3.11: one build serves every later version.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE /* accept4, struct ucred, ppoll */
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS; Python ignores SIGPIPE */
#endif
#define MOST 64 /* connections of one call */

/* What became of a connection; the same numbers as in dispatcher.py. */
enum outcome { PASSED, SILENT, READY, STRANGER };

/* messages._PASSED */
struct passed {
    uint64_t number, queued_ns;
    uint8_t accepted, stage, padding[6];
    uint64_t began_ns;
};

struct batch {
    int fds[MOST], outcomes[MOST], count, probes, error;
};

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

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

static void accept_batch(struct batch *batch, int listener, long most)
{
    while (batch->count < most && batch->count < MOST) {
        int fd = accept_next(listener);
        if (fd < 0) {
            batch->error = errno == EAGAIN || errno == EWOULDBLOCK ? 0 : errno;
            return;
        }
        batch->outcomes[batch->count] = SILENT;
        batch->fds[batch->count++] = fd;
    }
}

/* Whether it is known already that this client's user may use the server: pairs of uid and gid. */
static int is_known(int fd, const uint32_t *users, Py_ssize_t count)
{
#ifdef SO_PEERCRED
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0)
        for (Py_ssize_t i = 0; i + 1 < count; i += 2)
            if (users[i] == peer.uid && users[i + 1] == peer.gid)
                return 1;
#else
    (void)fd, (void)users, (void)count;
#endif
    return 0;
}

/* 1 for input, 0 for the end, -1 for silence. */
static int peek(int fd)
{
    char byte;
    ssize_t found = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (found < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? -1 : 0;
    return found > 0;
}

static int pass(int queue, int fd, uint64_t number)
{
    struct passed passed = {.number = number, .queued_ns = monotonic_ns(), .accepted = 1};
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec vector = {&passed, sizeof passed};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return sendmsg(queue, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof passed;
}

/* Pass what has input; drop what has ended. */
static void pass_readable(struct batch *batch, int queue, uint64_t first)
{
    int kept = 0;
    for (int i = 0; i < batch->count; i++) {
        int fd = batch->fds[i], outcome = batch->outcomes[i], found = outcome == SILENT ? peek(fd) : -1;
        if (found == 0) {
            close(fd);
            batch->probes++;
            continue;
        }
        if (found > 0)
            outcome = READY;
        batch->fds[kept] = fd, batch->outcomes[kept++] = outcome;
    }
    batch->count = kept;
    for (int i = 0; i < batch->count; i++) /* numbers go by the place, so they are given once nothing more is dropped */
        if (batch->outcomes[i] == READY && pass(queue, batch->fds[i], first + (uint64_t)i))
            batch->outcomes[i] = PASSED;
}

/* A client that has just connected mostly asks within microseconds: to wait for it is quicker than to watch it. */
static void wait_for_input(const struct batch *batch, long nanoseconds)
{
    struct pollfd entries[MOST];
    nfds_t count = 0;
    for (int i = 0; i < batch->count; i++)
        if (batch->outcomes[i] == SILENT && peek(batch->fds[i]) < 0)
            entries[count++] = (struct pollfd){batch->fds[i], POLLIN, 0};
#ifdef __linux__
    struct timespec time = {0, nanoseconds};
    if (count && count == (nfds_t)batch->count)
        ppoll(entries, count, &time, NULL);
#else
    (void)nanoseconds, (void)entries;
#endif
}

PyDoc_STRVAR(accept_doc,
             "accept_and_pass(listener, queue, first, most, users, patience) -> (connections, probes, errno)\n\n"
             "Accept up to `most` connections, numbered from `first` in their order, and pass those that have input.\n"
             "users: pairs of uid and gid that may use the server; patience: ns to wait for input if none has any.\n"
             "connections: (outcome, descriptor) of each; probes: connections that had ended; errno: of accept(2), or 0.");

static PyObject *accept_and_pass(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct batch batch = {.count = 0};
    (void)module;
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError, "accept_and_pass() takes 6 arguments");
        return NULL;
    }
    int listener = PyObject_AsFileDescriptor(args[0]), queue = PyObject_AsFileDescriptor(args[1]);
    unsigned long long first = PyLong_AsUnsignedLongLong(args[2]);
    long most = PyLong_AsLong(args[3]), patience = PyLong_AsLong(args[5]);
    char *users;
    Py_ssize_t size;
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[4], &users, &size) < 0)
        return NULL;
    accept_batch(&batch, listener, most);
    for (int i = 0; i < batch.count; i++)
        if (!is_known(batch.fds[i], (const uint32_t *)(const void *)users, size / (Py_ssize_t)sizeof(uint32_t)))
            batch.outcomes[i] = STRANGER;
    if (patience)
        wait_for_input(&batch, patience);
    pass_readable(&batch, queue, first);
    PyObject *connections = PyList_New(batch.count);
    for (int i = 0; connections != NULL && i < batch.count; i++) {
        PyObject *pair = Py_BuildValue("ii", batch.outcomes[i], batch.fds[i]);
        if (pair == NULL)
            Py_CLEAR(connections);
        else
            PyList_SetItem(connections, i, pair);
    }
    return connections == NULL ? NULL : Py_BuildValue("Nii", connections, batch.probes, batch.error);
}

PyDoc_STRVAR(close_doc, "close_all(descriptors)\n\nClose the descriptors of a list.");

static PyObject *close_all(PyObject *module, PyObject *descriptors)
{
    (void)module;
    Py_ssize_t count = PyList_Size(descriptors);
    if (count < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        int fd = PyObject_AsFileDescriptor(PyList_GetItem(descriptors, i));
        if (fd < 0)
            return NULL;
        close(fd);
    }
    return Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"accept_and_pass", (PyCFunction)(void (*)(void))accept_and_pass, METH_FASTCALL, accept_doc},
    {"close_all", close_all, METH_O, close_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "ipcsrv.master._passing", "Accepting and passing, compiled: see ipcsrv/master/dispatcher.py.",
    0, functions, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__passing(void)
{
    return PyModuleDef_Init(&definition);
}
