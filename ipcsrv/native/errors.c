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

/* A message on its way, as characters: what makes it one line is decided for the whole of it. */
struct line {
    unsigned *characters;
    size_t used, room;
};

static void put(struct line *line, unsigned character) {
    if (line->used == line->room) {
        size_t room = 2 * line->room + 256;
        unsigned *more = allocate(room * sizeof *more);
        if (line->used)
            memcpy(more, line->characters, line->used * sizeof *more);
        free(line->characters);
        line->characters = more;
        line->room = room;
    }
    line->characters[line->used++] = character;
}

/* Decode the UTF-8 sequence at `text`. Returns its length, or, negative, that of the bytes that begin none: as many as
 * Python replaces by one character. */
static int decode_utf8(const unsigned char *text, size_t size, unsigned *character) {
    unsigned lead = text[0];
    unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80; /* of the second byte: no overlong form, */
    unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf; /* no surrogate, none above U+10FFFF */
    int length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (length == 0)
        return -1;
    *character = length == 1 ? lead : lead & (0x7fU >> length);
    for (int i = 1; i < length; i++) {
        if ((size_t)i == size || text[i] < low || text[i] > high)
            return -i;
        *character = *character << 6 | (text[i] & 0x3fU);
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

/* Append UTF-8. A byte that is none becomes a surrogate in a path and is replaced in a message, as in Python. */
static void put_text(struct line *line, struct span text, bool is_path) {
    const unsigned char *at = (const unsigned char *)text.data, *end = at + text.size;
    while (at < end) {
        unsigned character = 0;
        int length = decode_utf8(at, (size_t)(end - at), &character);
        if (length < 0) {
            character = is_path ? 0xdc00 + *at : 0xfffd;
            length = is_path ? 1 : -length;
        }
        put(line, character);
        at += length;
    }
}

static bool within(const struct range *ranges, unsigned c) {
    while (ranges->last < c)
        ranges++;
    return ranges->first <= c;
}

static bool line_break(unsigned c) {
    return (c >= '\n' && c <= '\r') || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static char *encode_utf8(char *out, unsigned c) {
    if (c < 0x80) {
        *out++ = (char)c;
        return out;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    *out++ = (char)((0xff00U >> (more + 1) & 0xff) | c >> 6 * more);
    while (more--)
        *out++ = (char)(0x80 | (c >> 6 * more & 0x3f));
    return out;
}

/* Write what `errors.one_line` makes of the message. */
static void write_line(const struct line *line) {
    static const char prefix[] = "ipcsrv: ";
    char *text = allocate(sizeof prefix + line->used * sizeof "\\U0010ffff"), *out = text + sizeof prefix - 1;
    memcpy(text, prefix, sizeof prefix);
    for (size_t i = 0; i < line->used; i++) {
        unsigned c = line->characters[i];
        if (line_break(c)) {
            if (c == '\r' && i + 1 < line->used && line->characters[i + 1] == '\n')
                i++;
            if (i + 1 < line->used)
                *out++ = ' ';
        } else if (within(unprintable, c)) {
            out += sprintf(out, c == '\t' ? "\\t" : c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
        } else {
            out = encode_utf8(out, c);
        }
    }
    *out++ = '\n';
    (void)!write(2, text, (size_t)(out - text)); /* one write: lines of several processes do not mix */
    free(text);
}

/* An empty part at the end is left out with the colon or the space before it. */
static void leave_out(struct line *line) {
    if (line->used && line->characters[line->used - 1] == ' ')
        line->used--;
    if (line->used && line->characters[line->used - 1] == ':')
        line->used--;
}

void complain_of(const char *text, const char *path, struct span first, struct span second) {
    const struct span arguments[] = {span_of(path), first, second};
    struct line line = {NULL, 0, 0};
    while (*text) {
        size_t plain = strcspn(text, "\1\2\3");
        put_text(&line, (struct span){text, plain}, false);
        text += plain;
        if (*text == '\0')
            break;
        int which = *text++;
        size_t before = line.used;
        put_text(&line, arguments[which - 1], which == 1);
        while (which == 3 && line.used > before && within(spaces, line.characters[line.used - 1]))
            line.used--;
        if (line.used > before)
            continue;
        if (*text == ':') /* an empty part is left out with the colon behind it */
            text += 2;
        else
            leave_out(&line);
    }
    write_line(&line);
    free(line.characters);
}

struct span span_of(const char *text) {
    return (struct span){text, strlen(text)};
}

void complain(const char *text, const char *path, const char *first, const char *second) {
    complain_of(text, path, span_of(first), span_of(second));
}

int complain_system(int number) {
    const char *advice = number == EMFILE   ? "; raise the limit on open files (ulimit -n)"
                         : number == ENOSPC ? "; free some space"
                                            : "";
    complain("\2\3", "", strerror(number), advice);
    return EXIT_FAILED;
}
