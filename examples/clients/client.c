/* Send standard input as a request to the ipcsrv server at argv[1], print the response: cc client.c && ./a.out PATH */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LARGEST = 65516 }; /* bytes of data in a packet */

static int fail(const char *what) {
    fprintf(stderr, "client: %s\n", what);
    return 1;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path)
        return fail("one short path is needed");
    strcpy(address.sun_path, argv[1]);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        return fail("no server listens there");
    FILE *server = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");
    char data[LARGEST + 1], size[5] = "";
    for (size_t got; (got = fread(data, 1, LARGEST, stdin)) > 0;)
        fprintf(out, "%04zx", got + 4), fwrite(data, 1, got, out);
    if (fputs("0000", out) < 0 || fclose(out) != 0)
        return fail("cannot send");
    for (size_t held = data[0] = '\0'; fread(size, 1, 4, server) == 4;) {
        unsigned length = 0;
        if (sscanf(size, "%x", &length) != 1 || length < 4) /* the flush: what is held is the end of the response */
            return fwrite(data, 1, held, stdout) != held;
        fwrite(data, 1, held, stdout);
        held = fread(data, 1, length - 4 <= LARGEST ? length - 4 : 0, server);
        data[held] = '\0';
    }
    return fail(data); /* no flush: the last packet is "ERR ..." */
}
