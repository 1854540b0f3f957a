/* The commands: what is in a plain form is done here, the rest is the Python command's. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#include "ipcsrvc.h"

struct options {
    const char *operands[2];
    int operand_count;
    const char *autostart;
    bool worker;
    struct deadline deadline;
};

bool own_folder(char *path) {
#ifdef __APPLE__
    uint32_t size = PATH_MAX;
    char found[PATH_MAX];
    if (_NSGetExecutablePath(found, &size) != 0 || realpath(found, path) == NULL)
        return false;
#else
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (size <= 0)
        return false;
    path[size] = '\0';
#endif
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return true;
}

int exec_python(char **argv) {
    char folder[PATH_MAX];
    argv[0] = "ipcsrv";
    if (own_folder(folder))
        execv(formatted("%s/ipcsrv", folder), argv);
    execvp("ipcsrv", argv);
    complain("the command ipcsrv cannot be run: \2; install the Python package ipcsrv", "", strerror(errno), "");
    return EXIT_FAILED;
}

void debug(const char *text) {
    const char *wanted = getenv("IPCSRV_WARM_DEBUG");
    if (wanted != NULL && strcmp(wanted, "1") == 0)
        complain("warm: \2", "", text, "");
}

/* Digits with at most one point, above 0: what Python's parser of times reads alike. */
static bool parse_timeout(const char *text, struct deadline *deadline) {
    size_t size = strspn(text, "0123456789.");
    if (text[0] < '0' || text[0] > '9' || text[size] != '\0' || strchr(text, '.') != strrchr(text, '.'))
        return false;
    double seconds = strtod(text, NULL);
    *deadline = deadline_after(seconds);
    return seconds > 0 && seconds < 1e9;
}

/* Read options and operands; false for anything that is not plain, which is left to argparse. */
static bool parse(int argc, char **argv, struct options *options) {
    *options = (struct options){.deadline = no_deadline()};
    for (int i = 2; i < argc; i++) {
        if (argv[i][0] != '-') {
            if (options->operand_count == 2)
                return false;
            options->operands[options->operand_count++] = argv[i];
        } else if (strcmp(argv[i], "--worker") == 0) {
            options->worker = true;
        } else if (i + 1 == argc || argv[i + 1][0] == '-') {
            return false;
        } else if (strcmp(argv[i], "--timeout") == 0 || strcmp(argv[i], "-t") == 0) {
            if (!parse_timeout(argv[++i], &options->deadline))
                return false;
        } else if (strcmp(argv[i], "--autostart") == 0) {
            options->autostart = argv[++i];
        } else {
            return false;
        }
    }
    return true;
}

static void interrupted(int number) {
    (void)number;
    _exit(EXIT_INTERRUPTED);
}

/* Ctrl-C ends the command quietly; it stays ignored in a background job of a shell (sh(1), "Signals"). */
static void end_at_interrupt(void) {
    struct sigaction given;
    if (sigaction(SIGINT, NULL, &given) == 0 && given.sa_handler != SIG_IGN)
        signal(SIGINT, interrupted);
}

/* HOST:PORT or a URL, perhaps: Python looks closer. */
static bool may_be_address(const char *path) {
    return strchr(path, ':') != NULL && path[0] != '/' && path[0] != '.' && path[1] != ':';
}

static int call(const struct options *options, char **argv) {
    const char *path = options->operands[0], *data = options->operands[1];
    int code;
    struct sink output = {NULL, 0, 0};
    if (options->autostart != NULL && !is_current(path, options->autostart))
        return exec_python(argv); /* which compares it closer, and reloads it */
    int connection = connect_trusted(path, &options->deadline, options->autostart == NULL, &code);
    if (connection < 0) {
        if ((code == REFUSED_DEAD || code == REFUSED_ABSENT || code == REFUSED_BUSY) && options->autostart != NULL)
            return exec_python(argv); /* which starts it */
        return code < 0 ? explain_refusal(path, code) : code;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    struct request request = {NULL, 0};
    if (data != NULL)
        request = (struct request){data, strlen(data)};
    return exchange(connection, path, request, &options->deadline, &output);
}

static int is_active(const struct options *options) {
    int connection = attempt(options->operands[0]);
    return connection < 0 ? explain_refusal(options->operands[0], connection) : EXIT_OK;
}

/* Any answer but the plain "yes" is the Python command's to explain. */
static int ping(const struct options *options, char **argv) {
    static const char yes[] = "{\"ok\": true";
    char answer[256];
    struct sink sink = {answer, sizeof answer, 0};
    const char *question = options->worker ? "{\"command\": \"ping\", \"worker\": true}" : "{\"command\": \"ping\"}";
    struct deadline deadline = options->deadline.set ? options->deadline : deadline_after(5);
    char *path = formatted("%s.control", options->operands[0]);
    int code, connection = connect_trusted(path, &deadline, false, &code);
    if (connection < 0)
        return exec_python(argv);
    code = exchange(connection, path, (struct request){question, strlen(question)}, &deadline, &sink);
    if (code)
        return code;
    if (sink.used < sizeof yes - 1 || memcmp(answer, yes, sizeof yes - 1) != 0)
        return exec_python(argv);
    return EXIT_OK;
}

/* Else the connection could get the number of a standard stream, and the response would be written to it. */
static void open_closed_streams(void) {
    for (int standard = STDIN_FILENO; standard <= STDERR_FILENO; standard++)
        if (fcntl(standard, F_GETFD) < 0)
            (void)!open("/dev/null", O_RDWR); /* which gets the lowest number that is free */
}

int main(int argc, char **argv) {
    struct options options;
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "warm") == 0)
        return warm(argc, argv);
    if (!parse(argc, argv, &options))
        return exec_python(argv);
    if (options.operand_count >= 1 && may_be_address(options.operands[0]))
        return exec_python(argv);
    bool one = options.operand_count == 1, extra = options.autostart != NULL || options.worker;
    bool file = options.operand_count == 2 && options.operands[1][0] == '@', terminal = isatty(STDOUT_FILENO);
    if (file || (terminal && strcmp(command, "call") == 0)) /* where a newline may have to follow the response */
        return exec_python(argv);
    bool no_input = fcntl(STDIN_FILENO, F_GETFD) < 0 && options.operand_count == 1 && strcmp(command, "call") == 0;
    if (no_input)
        return exec_python(argv); /* which explains it */
    open_closed_streams();
    end_at_interrupt();
    if (strcmp(command, "call") == 0 && options.operand_count >= 1 && !options.worker)
        return call(&options, argv);
    if (strcmp(command, "is-active") == 0 && one && !extra && !options.deadline.set)
        return is_active(&options);
    if (strcmp(command, "ping") == 0 && one && options.autostart == NULL)
        return ping(&options, argv);
    return exec_python(argv);
}
