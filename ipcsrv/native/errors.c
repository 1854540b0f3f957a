/* Messages of one line on standard error, and memory. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ipcsrvc.h"

void *allocate(size_t size) {
    void *memory = malloc(size ? size : 1);
    if (memory == NULL) {
        static const char text[] = "ipcsrv: out of memory\n";
        (void)!write(2, text, sizeof text - 1);
        _exit(EXIT_FAILED);
    }
    return memory;
}

char *duplicate(const char *text) {
    size_t size = strlen(text) + 1;
    return memcpy(allocate(size), text, size);
}

char *formatted(const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int size = vsnprintf(NULL, 0, format, arguments);
    char *text = allocate((size_t)(size < 0 ? 0 : size) + 1);
    text[0] = '\0';
    if (size > 0)
        vsnprintf(text, (size_t)size + 1, format, again);
    va_end(again);
    va_end(arguments);
    return text;
}

struct line {
    char data[4096]; /* a longer message is cut */
    size_t used;
};

static void put(struct line *line, const char *data, size_t size) {
    if (size < sizeof line->data - 1 - line->used) {
        memcpy(line->data + line->used, data, size);
        line->used += size;
    }
}

/* The length of the UTF-8 sequence at `text`, and its character; 0 where it is none. */
static int decode_utf8(const unsigned char *text, unsigned *character) {
    int length = text[0] < 0x80 ? 1 : text[0] >= 0xc2 && text[0] < 0xe0 ? 2 : (text[0] & 0xf0) == 0xe0 ? 3
                 : text[0] >= 0xf0 && text[0] < 0xf5 ? 4 : 0;
    *character = length == 1 ? text[0] : text[0] & (0x7fU >> length);
    for (int i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) /* also at the terminating NUL */
            return 0;
        *character = *character << 6 | (text[i] & 0x3fU);
    }
    if ((length == 3 && (*character < 0x800 || (*character >= 0xd800 && *character < 0xe000))) ||
        (length == 4 && (*character < 0x10000 || *character > 0x10ffff)))
        return 0;
    return length;
}

/* Characters that str.isprintable() refuses and that change how a terminal shows a line. */
static bool unprintable(unsigned c) {
    return c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0xad || (c >= 0x200b && c <= 0x200f) ||
           (c >= 0x2028 && c <= 0x202f) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
}

static bool line_break(unsigned c) {
    return (c >= '\n' && c <= '\r') || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

/* Append text of unknown origin so that it stays one line, as `errors.one_line` does. */
static void put_safely(struct line *line, const char *text, bool is_path) {
    const unsigned char *at = (const unsigned char *)text;
    while (*at) {
        unsigned character;
        int length = decode_utf8(at, &character);
        char escape[16];
        if (length == 0) { /* a path's byte is shown as its surrogate; a message's is replaced */
            snprintf(escape, sizeof escape, "\\udc%02x", *at++);
            put(line, is_path ? escape : "\xef\xbf\xbd", is_path ? 6 : 3);
            continue;
        }
        if (line_break(character)) {
            if (character == '\r' && at[1] == '\n')
                at++;
            if (at[length])
                put(line, " ", 1);
        } else if (unprintable(character)) {
            const char *format = character == '\t' ? "\\t" : character < 0x100 ? "\\x%02x" : "\\u%04x";
            put(line, escape, (size_t)snprintf(escape, sizeof escape, format, character));
        } else {
            put(line, (const char *)at, (size_t)length);
        }
        at += length;
    }
}

void complain(const char *text, const char *path, const char *first, const char *second) {
    const char *arguments[] = {path, first, second};
    struct line line = {.used = 0};
    put(&line, "ipcsrv: ", 8);
    for (; *text; text++) {
        if (*text > 3) {
            put(&line, text, 1);
            continue;
        }
        const char *argument = arguments[*text - 1];
        put_safely(&line, argument, *text == 1);
        if (*argument)
            continue;
        if (text[1] == ':') /* an empty part is left out with the colon beside it */
            text += 2;
        else
            while (line.used > 8 && strchr(": ", line.data[line.used - 1]))
                line.used--;
    }
    line.data[line.used++] = '\n';
    (void)!write(2, line.data, line.used); /* one write: lines of several processes do not mix */
}

int complain_system(int number) {
    const char *advice = number == EMFILE   ? "; raise the limit on open files (ulimit -n)"
                         : number == ENOSPC ? "; free some space"
                                            : "";
    complain("\2\3", "", strerror(number), advice);
    return EXIT_FAILED;
}
