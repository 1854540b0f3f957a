/* `warm`: pass a run to a warm server and be its stand-in (ipcsrv/warm/client.py and wire.py once more). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipcsrvc.h"

#define FORMAT "ipcsrv-warm 1"
#define START_PATIENCE 0.15 /* seconds for a free worker to take the run; then it runs cold */
#define STREAMS 3
#define RETRY_PAUSE 20 /* milliseconds */
#define MAX_DATA 65516
#define READY 'R'
#define GO "G"
#define STOPPED 'T'

extern char **environ;

static int control = -1; /* the run's control channel */
static const char refused[] = "the server refused"; /* a process of another generation: the server is reloading */
static const char busy[] = "no worker is free";

/* -- whether it can run warm --------------------------------------------------------------------------------------- */

static const char *reason_for_cold(int argc, char **argv) {
    const char *wanted = getenv("IPCSRV_WARM");
    if (wanted != NULL && strcmp(wanted, "off") == 0)
        return "IPCSRV_WARM=off";
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "/dev/fd/", 8) == 0 || strncmp(argv[i], "/proc/self/fd/", 14) == 0)
            return "an argument names a descriptor";
    for (int descriptor = 0; descriptor < 3; descriptor++) {
        if (fcntl(descriptor, F_GETFD) < 0)
            return "a standard stream is closed";
        pid_t group = isatty(descriptor) ? tcgetpgrp(descriptor) : -1;
        if (group >= 0 && group != getpgrp())
            return "in the background of its terminal";
    }
    return NULL;
}

/* Become the program. `words`: the command line; `first`: where the program's arguments begin in it. */
static int run_cold(const struct program *program, const char *reason, char **words, int first) {
    if (program->is_module)
        return exec_python(words);
    debug(formatted("%s; running it cold", reason));
    words[first - 1] = program->argv0;
    if (access(program->argv0, X_OK) == 0) {
        execv(program->argv0, words + first - 1);
    } else { /* as `python SCRIPT` */
        bool has_flags = *program->flags != '\0';
        size_t count = 0;
        while (words[first - 1 + count] != NULL)
            count++;
        char **command = allocate((count + 3) * sizeof *command);
        command[0] = program->interpreter;
        command[1] = program->flags;
        memcpy(command + 1 + has_flags, words + first - 1, (count + 1) * sizeof *command);
        execv(program->interpreter, command);
    }
    complain("\1: cannot be run: \2", program->argv0, strerror(errno), "");
    return EXIT_USAGE;
}

/* -- the request --------------------------------------------------------------------------------------------------- */

struct message {
    char *data;
    size_t size;
};

static void add(struct message *message, const char *data, size_t size) {
    memcpy(message->data + message->size, data, size);
    message->size += size;
}

static void add_string(struct message *message, const char *text) {
    add(message, text, strlen(text) + 1);
}

/* The request's fields, each ended by NUL. */
static struct message encode(const char *token, const char *argv0, int argc, char **argv) {
    char folder[4096], number[32];
    unsigned ignored = 0;
    size_t size = sizeof folder + 256 + strlen(argv0) + strlen(token);
    for (int i = 0; i < argc; i++)
        size += strlen(argv[i]) + 1;
    for (char **entry = environ; *entry; entry++)
        size += strlen(*entry) + 1;
    struct message message = {allocate(size), 0};
    for (int i = 1; i < 32; i++) {
        struct sigaction action;
        if (i != SIGPIPE && i != SIGXFSZ && sigaction(i, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            ignored |= 1U << i;
    }
    if (getcwd(folder, sizeof folder) == NULL)
        return (struct message){NULL, 0};
    mode_t mask = umask(0);
    umask(mask);
    add_string(&message, FORMAT);
    add_string(&message, token);
    add_string(&message, folder);
    snprintf(number, sizeof number, "%o", (unsigned)mask);
    add_string(&message, number);
    snprintf(number, sizeof number, "%x", ignored);
    add_string(&message, number);
    snprintf(number, sizeof number, "%d", argc + 1);
    add_string(&message, number);
    add_string(&message, argv0);
    for (int i = 0; i < argc; i++)
        add_string(&message, argv[i]);
    for (char **entry = environ; *entry; entry++)
        if (strchr(*entry, '='))
            add_string(&message, *entry);
    return message;
}

/* The message as packets with a flush. */
static struct message frame(struct message message) {
    struct message framed = {allocate(message.size + 4 * (message.size / MAX_DATA + 3)), 0};
    for (size_t at = 0; at < message.size;) {
        size_t size = message.size - at < MAX_DATA ? message.size - at : MAX_DATA;
        char header[16];
        snprintf(header, sizeof header, "%04x", (unsigned)(size + 4) & 0xffff);
        add(&framed, header, 4);
        add(&framed, message.data + at, size);
        at += size;
    }
    add(&framed, "0000", 4);
    return framed;
}

/* Send bytes, with descriptors in the first of them; false where the other side takes no more, or not in time. */
static bool send_all(int connection, struct message message, const int *descriptors, size_t count,
                     const struct deadline *deadline) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(STREAMS * sizeof(int))];
    } ancillary;
    struct iovec bytes = {message.data, message.size};
    struct msghdr header = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &ancillary,
                            .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    memset(&ancillary, 0, sizeof ancillary);
    ancillary.header.cmsg_level = SOL_SOCKET;
    ancillary.header.cmsg_type = SCM_RIGHTS;
    ancillary.header.cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(&ancillary.header), descriptors, count * sizeof(int));
    while (bytes.iov_len) {
        ssize_t size = sendmsg(connection, &header, MSG_NOSIGNAL);
        if (size < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (size < 0) {
            if (remaining_ms(deadline) == 0)
                return false;
            poll(&(struct pollfd){.fd = connection, .events = POLLOUT}, 1, remaining_ms(deadline));
            continue;
        }
        bytes.iov_base = (char *)bytes.iov_base + size;
        bytes.iov_len -= (size_t)size;
        header.msg_control = NULL;
        header.msg_controllen = 0;
    }
    return true;
}

/* -- while it runs ------------------------------------------------------------------------------------------------- */

static void pass_on(int number) {
    int saved = errno;
    /* SIGTSTP would be discarded in a process group that is orphaned */
    char byte = (char)(number == SIGTSTP ? SIGSTOP : number);
    (void)!send(control, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    errno = saved;
}

/* Wait until a process is ready to become the program; else the reason. */
static const char *await_ready(const struct deadline *deadline) {
    char answer;
    struct pollfd ready = {.fd = control, .events = POLLIN};
    if (poll(&ready, 1, remaining_ms(deadline)) <= 0)
        return busy;
    ssize_t size = recv(control, &answer, 1, 0);
    if (size <= 0)
        return "the server gave the run up";
    return answer == READY ? NULL : refused;
}

/* Let the run begin, and pass the signals that this process gets on to it; none is lost in between. */
static void begin(void) {
    static const int relayed[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP};
    static const int streams[STREAMS] = {0, 1, 2};
    sigset_t held, before;
    sigfillset(&held);
    sigprocmask(SIG_BLOCK, &held, &before);
    struct deadline none = no_deadline();
    send_all(control, (struct message){GO, 1}, streams, STREAMS, &none);
    for (size_t i = 0; i < sizeof relayed / sizeof *relayed; i++) {
        struct sigaction action;
        sigaction(relayed[i], NULL, &action);
        if (action.sa_handler == SIG_IGN)
            continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = pass_on;
        action.sa_flags = SA_RESTART;
        sigaction(relayed[i], &action, NULL);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
}

/* End as the run has: `exit STATUS` or `signal NUMBER`. */
static int end_as(const char *response) {
    int number;
    if (sscanf(response, "exit %d", &number) == 1)
        return number;
    if (sscanf(response, "signal %d", &number) == 1) {
        struct rlimit none = {0, 0};
        sigset_t all;
        setrlimit(RLIMIT_CORE, &none); /* a core of the client is of no use */
        signal(number, SIG_DFL);
        sigemptyset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        kill(getpid(), number);
        pause();
    }
    complain("warm: the server died during the run; it may have done a part of its work", "", "", "");
    return EXIT_FAILED;
}

static int await_end(int connection) {
    char response[256];
    size_t used = 0;
    struct pollfd ready[2] = {{.fd = connection, .events = POLLIN}, {.fd = control, .events = POLLIN}};
    while (true) {
        if (poll(ready, 2, -1) < 0)
            continue;
        if (ready[1].revents) {
            char message[64];
            ssize_t size = recv(control, message, sizeof message, MSG_DONTWAIT);
            if (size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR))
                ready[1].fd = -1;
            else if (size > 0 && memchr(message, STOPPED, (size_t)size) != NULL)
                kill(getpid(), SIGSTOP); /* as the run has; SIGCONT, which is relayed, continues both */
        }
        if (ready[0].revents) {
            ssize_t size = recv(connection, response + used, sizeof response - 1 - used, 0);
            if (size < 0 && (errno == EAGAIN || errno == EINTR))
                continue;
            used += size > 0 ? (size_t)size : 0;
            response[used] = '\0';
            bool whole = used > 8 && memcmp(response + used - 4, "0000", 4) == 0;
            if (whole)
                response[used - 4] = '\0';
            if (whole || size <= 0 || used == sizeof response - 1)
                return end_as(whole ? response + 4 : "");
        }
    }
}

/* Pass the run to the server at `connection`; NULL once it has begun, else why it has not. */
static const char *pass_run(int connection, struct message request, const struct deadline *deadline) {
    const char *reason = NULL;
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        return strerror(errno);
    control = ends[0];
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    if (!send_all(connection, request, &ends[1], 1, deadline))
        reason = remaining_ms(deadline) == 0 ? busy : "the server does not take the request";
    close(ends[1]);
    if (reason == NULL)
        reason = await_ready(deadline);
    if (reason != NULL)
        close(control); /* and with it the run, if a worker takes it now */
    return reason;
}

int warm(int argc, char **argv) {
    struct program program;
    if (argc < 3 || argv[2][0] == '-' || !find_program(argv[2], &program))
        return exec_python(argv);
    int first = argc > 3 && !program.by_launcher && strcmp(argv[3], "--") == 0 ? 4 : 3;
    const char *reason = reason_for_cold(argc - first, argv + first);
    if (reason != NULL)
        return run_cold(&program, reason, argv, first);
    struct deadline deadline = no_deadline();
    do {
        if (deadline.set)
            sleep_ms(RETRY_PAUSE);
        const char *token = locate_server(&program) ? current_token(&program) : NULL;
        int connection = token == NULL ? -1 : attempt(program.socket);
        if (connection < 0 || !trusted(connection, program.socket))
            return exec_python(argv); /* which starts a server, or says why there can be none */
        struct message request = encode(token, program.argv0, argc - first, argv + first);
        if (request.data == NULL)
            return run_cold(&program, strerror(errno), argv, first);
        if (!deadline.set)
            deadline = deadline_after(START_PATIENCE);
        reason = pass_run(connection, frame(request), &deadline);
        if (reason == NULL) {
            begin();
            return await_end(connection);
        }
        close(connection);
    } while (reason == refused && remaining_ms(&deadline) != 0);
    return run_cold(&program, reason, argv, first);
}
