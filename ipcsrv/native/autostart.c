/* Whether the server that runs is the one that `--autostart` asks for, and runs the code that is there now.
 *
 * This is what ipcsrv/server/ensure.py compares, read from the record in the lock file (docs/control.md): one line of
 * JSON. Whatever is not plainly the same is left to Python.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipcsrvc.h"

#define LOCK_SUFFIX ".ipcsrv.lock"

/* A member of an object, as it is written: the key without its quotes, the value with them. */
struct member {
    struct span key, value;
};

/* The end of the JSON value at `at`: the comma or bracket behind it, or the end of the text. */
static const char *end_of(const char *at) {
    int depth = 0;
    bool quoted = false;
    for (; *at; at++) {
        if (quoted) {
            if (*at == '\\' && at[1])
                at++;
            else if (*at == '"')
                quoted = false;
        } else if (*at == '"') {
            quoted = true;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if (*at == '}' || *at == ']') {
            if (depth-- == 0)
                return at;
        } else if (*at == ',' && depth == 0) {
            return at;
        }
    }
    return at;
}

/* Read the member behind the bracket or comma at `*at`, and move behind it; false if there is none. */
static bool next_member(const char **at, struct member *member) {
    if (**at != '{' && **at != ',')
        return false;
    const char *key = *at + 1 + strspn(*at + 1, " "), *end = key;
    if (*key++ != '"')
        return false;
    for (end = key; *end && *end != '"'; end++)
        if (*end == '\\' && end[1])
            end++;
    member->key = (struct span){key, (size_t)(end - key)};
    if (end[0] != '"' || end[1] != ':')
        return false;
    const char *value = end + 2 + strspn(end + 2, " ");
    *at = end_of(value);
    member->value = (struct span){value, (size_t)(*at - value)};
    return true;
}

static bool is(struct span span, const char *text) {
    return span.size == strlen(text) && memcmp(span.data, text, span.size) == 0;
}

static bool is_string(struct span value, const char *text) {
    return is(value, formatted("\"%s\"", text)); /* one that JSON escapes is not found to be the same */
}

/* Whether a file has the stamp that it had when it was imported. */
static bool unchanged(const struct member *file) {
    struct stat info;
    if (memchr(file->key.data, '\\', file->key.size) != NULL)
        return false;
    char *path = formatted("%.*s", (int)file->key.size, file->key.data);
    bool found = stat(path, &info) == 0;
    free(path);
    if (!found)
        return is_string(file->value, "missing");
#ifdef __APPLE__
    struct timespec changed = info.st_mtimespec;
#else
    struct timespec changed = info.st_mtim;
#endif
    char stamp[64];
    long long nanoseconds = (long long)changed.tv_sec * 1000000000 + changed.tv_nsec;
    snprintf(stamp, sizeof stamp, "%llx-%llx", (unsigned long long)info.st_size, (unsigned long long)nanoseconds);
    return is_string(file->value, stamp);
}

static bool all_unchanged(const char *files) {
    struct member file;
    if (files[0] == '{' && files[1] == '}')
        return true;
    while (next_member(&files, &file))
        if (!unchanged(&file))
            return false;
    return *files == '}';
}

bool is_current(const char *path, const char *handler) {
    char *lock = formatted("%s" LOCK_SUFFIX, path);
    struct stat info;
    if (lstat(lock, &info) < 0 || !S_ISREG(info.st_mode) || (info.st_uid != geteuid() && info.st_uid != 0))
        return false; /* another user's record says only what that user wishes */
    struct text record = read_file(lock, SIZE_MAX);
    bool same_handler = false, same_version = false, same_code = false;
    struct member member;
    const char *at = record.data;
    while (at != NULL && next_member(&at, &member)) {
        if (is(member.key, "handler"))
            same_handler = is_string(member.value, handler);
        else if (is(member.key, "version"))
            same_version = is_string(member.value, IPCSRV_VERSION);
        else if (is(member.key, "files"))
            same_code = all_unchanged(member.value.data);
    }
    return same_handler && same_version && same_code && *at == '}';
}
