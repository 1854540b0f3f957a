/* ipcsrvc: the commands of ipcsrv that are worth a process without Python (docs/native-client.md).
 *
 * Messages in errors.c, connecting in connect.c, one exchange in exchange.c, `--autostart` in autostart.c,
 * `warm` in program.c and warm.c, the other commands in main.c.
 */
#ifndef IPCSRVC_H
#define IPCSRVC_H

#include <stdbool.h>
#include <stddef.h>

#include "messages.h" /* generated from ipcsrv/errors.py: the texts and exit codes of both clients are the same */

#define EXIT_OK 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define EXIT_INTERRUPTED 130 /* 128 + SIGINT */
#define EXIT_BROKEN_PIPE 141 /* 128 + SIGPIPE */

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS has SO_NOSIGPIPE in its place */
#endif

/* errors.c */

/* Write `ipcsrv: TEXT` as one line to standard error. In `text`, \1 stands for `path`, \2 for `first`, \3 for `second`. */
void complain(const char *text, const char *path, const char *first, const char *second);
/* The same with parts that may hold NUL, as what a server sent. */
struct span {
    const char *data;
    size_t size;
};
struct span span_of(const char *text);
void complain_of(const char *text, const char *path, struct span first, struct span second);
/* Say why a system call failed; returns EXIT_FAILED. */
int complain_system(int number);
/* Allocate, or exit. */
void *allocate(size_t size);
char *duplicate(const char *text);
char *formatted(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* connect.c */

struct deadline {
    bool set;
    double timeout; /* seconds, as asked for */
    double end;     /* of the monotonic clock */
};

struct deadline deadline_after(double seconds);
struct deadline no_deadline(void);
/* Milliseconds left, for poll(2): rounded up; -1 without a deadline. */
int remaining_ms(const struct deadline *deadline);
void sleep_ms(int milliseconds);
/* Write the timeout as it is shown to people into `text`. */
const char *shown_timeout(const struct deadline *deadline, char text[32]);

enum refusal { REFUSED_BUSY = -2, REFUSED_DEAD = -3, REFUSED_ABSENT = -4, REFUSED_OTHER = -5 };

/* Connect once. Returns a descriptor, or why not; nothing has been written to standard error. */
int attempt(const char *path);
/* Say why the last attempt failed; returns the exit code. */
int explain_refusal(const char *path, int refusal);
/* Connect to a trusted server, trying again while it is busy. Returns a descriptor; else -1 and the exit code. */
int connect_trusted(const char *path, const struct deadline *deadline, bool wait_if_busy, int *exit_code);
/* True if the server at the other end runs as this user or as root; else the message is written. */
bool trusted(int connection, const char *path);

/* exchange.c */

struct request {
    const char *data; /* NULL: standard input */
    size_t size;
};

struct sink {
    char *data; /* NULL: standard output */
    size_t size, used;
};

/* Send the request, pass the response on as it comes; returns the exit code, after a message if it is not 0. */
int exchange(int connection, const char *path, struct request request, const struct deadline *deadline,
             struct sink *sink);

/* autostart.c */

/* Whether the server's record says that it serves this handler, by this version, with the code that is there now. */
bool is_current(const char *path, const char *handler);

/* program.c */

struct text {
    char *data;
    size_t size;
};

/* Read a file until its end, or until there are `limit` bytes; `data` is NULL where there is none, else NUL follows. */
struct text read_file(const char *path, size_t limit);

struct program {
    bool is_module;    /* MODULE:MAIN */
    bool by_launcher;  /* a launcher has named it, whose arguments are all the program's */
    char *argv0;       /* the script, as the run sees its name */
    char *path;        /* the same, absolute */
    char *interpreter; /* absolute path of the Python that its first line names */
    char *flags;       /* of the interpreter, on that line, or "" */
    char *key;         /* what a server of it depends on */
    size_t key_size;
    char *socket; /* path of its server's socket */
    char *stamps; /* path of the file that says what the server has imported */
};

/* Find a script as the shell would; false where Python has to look closer. */
bool find_program(const char *name, struct program *program);
/* Fill in what describes the server; false where there can be none yet. */
bool locate_server(struct program *program);
/* The token of a server that is up to date; NULL otherwise. */
const char *current_token(const struct program *program);

/* warm.c */

int warm(int argc, char **argv);

/* main.c */

/* The folder of this executable in `path`, of PATH_MAX bytes; false where it is not known. */
bool own_folder(char *path);
/* Replace this process by the Python command with the same arguments. */
int exec_python(char **argv);
/* Say how a program is run, if IPCSRV_WARM_DEBUG=1. */
void debug(const char *text);

#endif
