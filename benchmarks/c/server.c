/*
 * server: the bare loops that set the limit of what any server on this machine can reach.
 *
 *   server PATH PROCESSES MODE [SIZE] [CHUNKS]
 *
 * MODE once     accept, one read, answer `pong`, close: nothing is parsed, nothing is checked
 *      keep     accept, answer every 12 bytes read, which is a `ping`, with a `pong` until the client closes
 *      bulk     read a request up to its flush, answer with SIZE bytes in maximal packets (0: `pong`)
 *      chunks   answer each read with CHUNKS packets of SIZE bytes, one send each, and a flush
 *      pass     the shape of ipcsrv: one more process accepts, and passes each connection by SCM_RIGHTS through a
 *               SOCK_SEQPACKET pair to the PROCESSES, which answer like `keep` until the client closes
 *
 * But for `pass`, every process blocks in accept on the same listening socket; each connection is served to its end by
 * the process that accepted it. Runs until it is killed; the caller removes the socket.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_DATA 65516
#define MAX_PACKET 65520

static char buffer[MAX_PACKET];
static char packet[MAX_PACKET];
static long size, chunks;

static void answer(int fd)
{
    send(fd, "0008pong0000", 12, MSG_NOSIGNAL);
}

static void serve_once(int fd)
{
    if (recv(fd, buffer, sizeof buffer, 0) > 0)
        answer(fd);
}

static void serve_keep(int fd)
{
    ssize_t n;
    for (size_t i = 0; i < sizeof packet / 12; i++)
        memcpy(packet + i * 12, "0008pong0000", 12);
    while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0)
        send(fd, packet, (size_t)n / 12 * 12, MSG_NOSIGNAL);
}

static int send_all(int fd, const char *data, size_t left)
{
    while (left) {
        ssize_t n = send(fd, data, left, MSG_NOSIGNAL);
        if (n < 0)
            return -1;
        data += n, left -= (size_t)n;
    }
    return 0;
}

static int read_exactly(int fd, char *into, size_t left)
{
    while (left) {
        ssize_t n = recv(fd, into, left, 0);
        if (n <= 0)
            return -1;
        into += n, left -= (size_t)n;
    }
    return 0;
}

/* Keeps the whole message in memory, as a handler needs it, and gives it back by free. */
static int read_message(int fd)
{
    size_t held = 0, room = 1 << 20;
    char *message = malloc(room), header[5] = {0};
    for (;;) {
        if (read_exactly(fd, header, 4) < 0)
            break;
        size_t length = (size_t)strtol(header, NULL, 16);
        if (length < 4) {
            free(message);
            return 0;
        }
        if (held + length > room)
            message = realloc(message, room *= 2);
        if (read_exactly(fd, message + held, length - 4) < 0)
            break;
        held += length - 4;
    }
    free(message);
    return -1;
}

static void send_bulk(int fd)
{
    for (long left = size; left > 0; left -= MAX_DATA) {
        size_t part = left < MAX_DATA ? (size_t)left : MAX_DATA;
        char header[5];
        sprintf(header, "%04zx", part + 4);
        memcpy(packet, header, 4);
        if (send_all(fd, packet, part + 4) < 0)
            return;
    }
    send_all(fd, "0000", 4);
}

static void serve_bulk(int fd)
{
    while (read_message(fd) == 0)
        if (size)
            send_bulk(fd);
        else
            answer(fd);
}

static void serve_chunks(int fd)
{
    char header[5];
    sprintf(header, "%04lx", size + 4);
    memcpy(packet, header, 4);
    while (recv(fd, buffer, sizeof buffer, 0) > 0) {
        for (long i = 0; i < chunks; i++)
            if (send_all(fd, packet, (size_t)size + 4) < 0)
                return;
        send_all(fd, "0000", 4);
    }
}

static void pass_connection(int queue, int fd)
{
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    sendmsg(queue, &message, MSG_NOSIGNAL);
}

static int take_connection(int queue)
{
    int fd = -1;
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(queue, &message, MSG_CMSG_CLOEXEC) <= 0)
        exit(0);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL)
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

/* One process accepts and passes, the others serve. */
static void accept_and_pass(int listener, int processes)
{
    int queue[2];
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, queue);
    for (int i = 0; i < processes; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(listener), close(queue[0]);
            for (;;) {
                int fd = take_connection(queue[1]);
                serve_keep(fd);
                close(fd);
            }
        }
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        pass_connection(queue[0], fd);
        close(fd);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    void (*serve)(int) = serve_once;
    if (argc < 4) {
        fprintf(stderr, "usage: server PATH PROCESSES once|keep|bulk|chunks|pass [SIZE] [CHUNKS]\n");
        return 2;
    }
    if (!strcmp(argv[3], "keep"))
        serve = serve_keep;
    else if (!strcmp(argv[3], "bulk"))
        serve = serve_bulk;
    else if (!strcmp(argv[3], "chunks"))
        serve = serve_chunks;
    size = argc > 4 ? atol(argv[4]) : 0;
    chunks = argc > 5 ? atol(argv[5]) : 0;
    memset(packet, 'x', sizeof packet);
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1024) < 0) {
        perror(argv[1]);
        return 1;
    }
    if (!strcmp(argv[3], "pass"))
        accept_and_pass(listener, atoi(argv[2]));
    for (int i = 1; i < atoi(argv[2]); i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            break;
        }
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        serve(fd);
        close(fd);
    }
}
