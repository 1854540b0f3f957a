/* Connecting as docs/protocol.md section 3 says, and the check of the server's credentials (section 5). */
#ifdef __linux__
#define _GNU_SOURCE /* O_PATH, struct ucred */
#endif
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "ipcsrvc.h"

#define FIRST_PAUSE 1        /* milliseconds; doubled after each failure */
#define LONGEST_PAUSE 50     /* milliseconds */
#define REFUSED_PATIENCE 1.0 /* seconds that a refusing socket is tried without a deadline */

/* The reasons of the Python client's connect, word for word. */
#define REASON_UNSEEN "it cannot be looked at: %s"
#define REASON_FOLDER "it is a folder, not a socket"
#define REASON_NO_SOCKET "it is not a socket"
#define REASON_KIND "it is a socket of another kind, not a stream"
#define REASON_EMPTY "a path must not be empty or contain NUL"

static int last_error;               /* errno of the last attempt */
static const char *last_reason = ""; /* why the path is invalid, where that is so */

/* -- time ---------------------------------------------------------------------------------------------------------- */

static double monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

struct deadline deadline_after(double seconds) {
    return (struct deadline){true, seconds, monotonic() + seconds};
}

struct deadline no_deadline(void) {
    return (struct deadline){false, 0, 0};
}

int remaining_ms(const struct deadline *deadline) {
    if (!deadline->set)
        return -1;
    double left = ceil((deadline->end - monotonic()) * 1000);
    return left <= 0 ? 0 : left > 1e9 ? 1000000000 : (int)left;
}

void sleep_ms(int milliseconds) {
    poll(NULL, 0, milliseconds);
}

const char *shown_timeout(const struct deadline *deadline, char text[32]) {
    snprintf(text, 32, "%g", deadline->timeout);
    return text;
}

/* -- one attempt --------------------------------------------------------------------------------------------------- */

static int invalid(const char *reason) {
    last_reason = reason;
    last_error = 0;
    return REFUSED_OTHER;
}

static int what_is_there(const char *path, int number) {
    struct stat info;
    if (stat(path, &info) < 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return REFUSED_ABSENT;
        return invalid(formatted(REASON_UNSEEN, strerror(errno)));
    }
    if (!S_ISSOCK(info.st_mode))
        return invalid(S_ISDIR(info.st_mode) ? REASON_FOLDER : REASON_NO_SOCKET);
    if (number == EPROTOTYPE)
        return invalid(REASON_KIND);
    if (number == ECONNREFUSED)
        return REFUSED_DEAD;
    last_error = number; /* the socket's mode */
    last_reason = NULL;
    return REFUSED_OTHER;
}

static int refusal_of(const char *path, int number) {
    switch (number) {
    case EAGAIN:
    case EINPROGRESS:
        return REFUSED_BUSY;
    case ENOENT:
    case ENOTDIR:
        return REFUSED_ABSENT;
    case ECONNREFUSED:
    case EACCES:
    case EPERM:
    case ENOTSOCK:
    case EPROTOTYPE:
        return what_is_there(path, number);
    case ELOOP:
    case ENAMETOOLONG:
    case EINVAL:
        return invalid(strerror(number));
    default:
        last_error = number;
        last_reason = "";
        return REFUSED_OTHER;
    }
}

/* connect(2) to a path of any length: a long one is opened without access, and reached through its descriptor. */
static int connect_at(int connection, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length < sizeof address.sun_path) {
        memcpy(address.sun_path, path, length + 1);
        return connect(connection, (struct sockaddr *)&address, sizeof address);
    }
#ifdef __linux__
    int file = open(path, O_PATH | O_CLOEXEC);
    if (file < 0)
        return -1;
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d", file);
    int result = connect(connection, (struct sockaddr *)&address, sizeof address), number = errno;
    close(file);
    errno = number;
    return result;
#else
    errno = ENAMETOOLONG;
    return -1;
#endif
}

int attempt(const char *path) {
    if (*path == '\0')
        return invalid(REASON_EMPTY);
    int connection = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connection < 0)
        return refusal_of(path, errno);
    fcntl(connection, F_SETFD, FD_CLOEXEC);
    fcntl(connection, F_SETFL, O_NONBLOCK); /* where connect(2) must not wait, it fails at once */
#ifdef SO_NOSIGPIPE
    setsockopt(connection, SOL_SOCKET, SO_NOSIGPIPE, &(int){1}, sizeof(int));
#endif
    if (connect_at(connection, path) == 0)
        return connection;
    int number = errno;
    close(connection);
    return refusal_of(path, number);
}

int explain_refusal(const char *path, int refusal) {
    if (refusal == REFUSED_ABSENT) {
        complain(TEXT_PATH_NOT_FOUND, path, "", "");
        return EXIT_PATH_NOT_FOUND;
    }
    if (refusal == REFUSED_DEAD || refusal == REFUSED_BUSY) {
        complain(TEXT_NOT_LISTENING, path, "", "");
        return EXIT_NOT_LISTENING;
    }
    if (last_reason == NULL) {
        complain(TEXT_NO_ACCESS, path, "", "");
        return EXIT_NO_ACCESS;
    }
    if (last_error)
        return complain_system(last_error);
    complain(TEXT_INVALID_PATH, path, last_reason, "");
    return EXIT_INVALID_PATH;
}

/* -- a connection -------------------------------------------------------------------------------------------------- */

static bool peer_uid(int connection, uid_t *uid) {
#ifdef __linux__
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return false;
    *uid = peer.uid;
    return true;
#else
    gid_t gid;
    return getpeereid(connection, uid, &gid) == 0;
#endif
}

bool trusted(int connection, const char *path) {
    uid_t uid = 0;
    char text[32];
    if (!peer_uid(connection, &uid)) {
        complain_system(errno);
        return false;
    }
    if (uid == 0 || uid == geteuid())
        return true;
    snprintf(text, sizeof text, "%lu", (unsigned long)uid);
    complain(TEXT_UNTRUSTED, path, text, "");
    return false;
}

int connect_trusted(const char *path, const struct deadline *deadline, bool wait_if_busy, int *exit_code) {
    int pause = FIRST_PAUSE, left;
    double refused_for = 0;
    int connection = attempt(path);
    while (connection == REFUSED_BUSY || connection == REFUSED_DEAD) {
        left = remaining_ms(deadline);
        if (!wait_if_busy || left == 0)
            break;
        if (connection == REFUSED_DEAD && !deadline->set && (refused_for += pause / 1000.0) > REFUSED_PATIENCE)
            break;
        sleep_ms(left > 0 && left < pause ? left : pause);
        pause = 2 * pause < LONGEST_PAUSE ? 2 * pause : LONGEST_PAUSE;
        connection = attempt(path);
    }
    if (connection == REFUSED_BUSY && wait_if_busy) {
        char text[32];
        complain(TEXTS_TIMEOUT[NOTHING_SENT], path, shown_timeout(deadline, text), "");
        *exit_code = EXIT_TIMEOUT;
        return -1;
    }
    if (connection < 0) {
        *exit_code = connection; /* a refusal: the caller may know what to do about it */
        return -1;
    }
    if (!trusted(connection, path)) {
        close(connection);
        *exit_code = EXIT_UNTRUSTED;
        return -1;
    }
    return connection;
}
