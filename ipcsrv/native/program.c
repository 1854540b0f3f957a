/* Find a program, its interpreter and the path of its server, and check that the server is up to date.
 *
 * This is ipcsrv/warm/program.py and stamps.py once more; both must give the same paths.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipcsrvc.h"

#define FORMAT "ipcsrv-warm 1"
#define LAUNCHER "ipcsrvc warm"
#define LONGEST_NAME 32
#define WORKING_FOLDER "." /* in the file of variables: what else decides how an import ends */
#define TERMINALS "/tty"

extern char **environ;

static const char *const startup_variables[] = {
    "DYLD_INSERT_LIBRARIES", "DYLD_LIBRARY_PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD",
};

/* -- text ---------------------------------------------------------------------------------------------------------- */

static void append(struct text *text, const char *data, size_t size) {
    char *more = realloc(text->data, text->size + size + 1);
    if (more == NULL)
        exit(complain_system(ENOMEM));
    memcpy(more + text->size, data, size);
    text->data = more;
    text->size += size;
    more[text->size] = '\0';
}

/* Append a string with its NUL. */
static void append_string(struct text *text, const char *string) {
    append(text, string, strlen(string) + 1);
}

struct text read_file(const char *path, size_t limit) {
    struct text text = {NULL, 0};
    char buffer[1 << 14];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size;
    if (file < 0)
        return text;
    append(&text, "", 0);
    while (text.size < limit && (size = read(file, buffer, sizeof buffer)) > 0)
        append(&text, buffer, (size_t)size);
    close(file);
    return text;
}

static bool starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* -- the program --------------------------------------------------------------------------------------------------- */

static char *in_path(const char *name) {
    const char *folders = getenv("PATH");
    if (folders == NULL)
        folders = "/bin:/usr/bin";
    while (true) {
        size_t size = strcspn(folders, ":");
        char *path = formatted("%.*s/%s", (int)(size ? size : 1), size ? folders : ".", name);
        struct stat info;
        if (stat(path, &info) == 0 && S_ISREG(info.st_mode) && access(path, X_OK) == 0)
            return path;
        free(path);
        if (folders[size] == '\0')
            return NULL;
        folders += size + 1;
    }
}

/* The first two lines of a script; false where it cannot be read. */
static bool first_lines(const char *path, char *lines[2]) {
    struct text text = read_file(path, 1);
    if (text.data == NULL)
        return false;
    char *end = strchr(text.data, '\n');
    lines[0] = text.data;
    lines[1] = end == NULL ? "" : end + 1;
    if (end != NULL) {
        *end = '\0';
        lines[1][strcspn(lines[1], "\n")] = '\0';
    }
    return true;
}

/* Find the Python that the script's first line names, and its flags. */
static bool find_interpreter(char *lines[2], struct program *program) {
    if (!starts_with(lines[0], "#!"))
        return false;
    char *words[4] = {NULL}, *rest = lines[0] + 2;
    int count = 0;
    for (char *word; count < 4 && (word = strtok(count ? NULL : rest, " \t\r")) != NULL; count++)
        words[count] = word;
    if (count == 1 && strcmp(words[0], "/bin/sh") == 0 && starts_with(lines[1], "'''exec' ")) {
        char *quoted = lines[1] + strlen("'''exec' ");
        bool quotes = *quoted == '"';
        words[0] = quoted + quotes;
        words[0][strcspn(words[0], quotes ? "\"" : " ")] = '\0';
    } else if (count == 2 && strcmp(base_name(words[0]), "env") == 0) {
        words[0] = in_path(words[1]);
        count = 1;
    }
    if (count == 0 || count > 2 || words[0] == NULL || words[0][0] != '/')
        return false;
    program->interpreter = words[0];
    program->flags = count == 2 ? words[1] : "";
    const char *base = base_name(words[0]);
    return (starts_with(base, "python") && !starts_with(base, "python2")) || starts_with(base, "pypy");
}

/* MODULE:MAIN, which the interpreter of the Python command runs. */
static bool find_module(const char *name, struct program *program) {
    char *lines[2], folder[PATH_MAX];
    if (!own_folder(folder) || !first_lines(formatted("%s/ipcsrv", folder), lines) || !find_interpreter(lines, program))
        return false;
    program->argv0 = program->path = duplicate(name);
    program->flags = "-P";
    return true;
}

bool find_program(const char *name, struct program *program) {
    program->by_launcher = false;
    program->is_module = strchr(name, ':') != NULL && strchr(name, '/') == NULL;
    if (program->is_module)
        return find_module(name, program);
    char *lines[2], *path = strchr(name, '/') ? duplicate(name) : in_path(name);
    if (path == NULL || !first_lines(path, lines))
        return false;
    if (starts_with(lines[0], "#!") && strstr(lines[0], LAUNCHER) != NULL) {
        program->by_launcher = true;
        path = duplicate(lines[1]);
        if (!first_lines(path, lines))
            return false;
    }
    program->argv0 = path;
    program->path = path;
    if (path[0] != '/') {
        char folder[PATH_MAX];
        if (strstr(path, "./") != NULL || strstr(path, "//") != NULL || getcwd(folder, sizeof folder) == NULL)
            return false; /* Python makes such a path plain */
        program->path = formatted("%s/%s", folder, path);
    } else if (strstr(path, "/./") || strstr(path, "/../") || strstr(path, "//")) {
        return false;
    }
    return find_interpreter(lines, program);
}

/* -- the server's path --------------------------------------------------------------------------------------------- */

static bool is_private(const char *folder) {
    struct stat info;
    int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0)
        return false;
    bool found = fstat(descriptor, &info) == 0 && info.st_uid == geteuid() && (info.st_mode & 077) == 0;
    close(descriptor);
    return found;
}

/* The folder of all servers that run warm; NULL where it does not exist or is not this user's alone. */
static char *servers_folder(void) {
    const char *chosen = getenv("IPCSRV_RUNTIME_DIR"), *session = getenv("XDG_RUNTIME_DIR"), *temporary = getenv("TMPDIR");
    char *folder;
    if (chosen != NULL && *chosen)
        folder = duplicate(chosen);
    else if (session != NULL && *session && is_private(session))
        folder = formatted("%s/ipcsrv", session);
    else
        folder = formatted("%s/ipcsrv-%lu", temporary && *temporary ? temporary : "/tmp", (unsigned long)geteuid());
    char *warm = formatted("%s/warm", folder);
    return folder[0] == '/' && is_private(folder) && is_private(warm) ? warm : NULL;
}

static bool is_startup_variable(const char *entry) {
    if (starts_with(entry, "LC_") || starts_with(entry, "PYTHON"))
        return true;
    size_t size = strcspn(entry, "=");
    for (size_t i = 0; i < sizeof startup_variables / sizeof *startup_variables; i++)
        if (strlen(startup_variables[i]) == size && strncmp(startup_variables[i], entry, size) == 0)
            return true;
    return false;
}

/* Order by the name alone, as Python sorts the names. */
static int compare_names(const void *left, const void *right) {
    const char *a = *(const char *const *)left, *b = *(const char *const *)right;
    size_t size_a = strcspn(a, "="), size_b = strcspn(b, "="), size = size_a < size_b ? size_a : size_b;
    int order = memcmp(a, b, size);
    return order ? order : size_a < size_b ? -1 : size_a > size_b;
}

static bool is_relative(const char *folders) {
    for (; *folders; folders += strcspn(folders, ":"), folders += *folders == ':')
        if (*folders != '/')
            return true;
    return folders[-1] == ':';
}

/* The groups of this process, which are those of a server that it starts. */
static bool append_groups(struct text *key) {
    int count = getgroups(0, NULL);
    gid_t *groups = allocate(((size_t)(count < 0 ? 0 : count) + 1) * sizeof *groups);
    count = getgroups(count, groups);
    if (count < 0)
        return false;
    char *text = formatted("%lu %lu", (unsigned long)getgid(), (unsigned long)getegid());
    append(key, text, strlen(text));
    for (int i = 0; i < count; i++) {
        text = formatted(" %lu", (unsigned long)groups[i]);
        append(key, text, strlen(text));
    }
    append(key, "", 1);
    return true;
}

static bool append_key(struct text *key, const struct program *program) {
    const char *searched = getenv("PYTHONPATH");
    char folder[PATH_MAX] = "";
    if (searched != NULL && *searched && is_relative(searched) && getcwd(folder, sizeof folder) == NULL)
        return false;
    append_string(key, FORMAT);
    append_string(key, IPCSRV_VERSION);
    append_string(key, program->interpreter);
    append_string(key, program->flags);
    append_string(key, program->path);
    append_string(key, folder);
    if (!append_groups(key))
        return false;
    size_t count = 0, total = 0;
    while (environ[total] != NULL)
        total++;
    char **found = allocate((total + 1) * sizeof *found);
    for (size_t i = 0; i < total; i++)
        if (is_startup_variable(environ[i]) && strchr(environ[i], '='))
            found[count++] = environ[i];
    qsort(found, count, sizeof *found, compare_names);
    for (size_t i = 0; i < count; i++)
        append_string(key, found[i]);
    free(found);
    return true;
}

/* `FOLDER/NAME-HASH`: FNV-1a of 64 bits, for names only; what decides is the key in the file of stamps. */
static char *stem_of(const char *folder, const struct program *program, const struct text *key) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < key->size; i++)
        hash = (hash ^ (unsigned char)key->data[i]) * UINT64_C(0x100000001b3);
    char name[LONGEST_NAME + 1];
    snprintf(name, sizeof name, "%s", base_name(program->path));
    for (char *at = name; *at; at++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", *at))
            *at = '_';
    return formatted("%s/%s-%016" PRIx64, folder, name, hash);
}

/* What a server depends on by this name; `buffer` has PATH_MAX bytes. */
static const char *value_of(const char *name, char *buffer) {
    if (strcmp(name, WORKING_FOLDER) == 0)
        return getcwd(buffer, PATH_MAX);
    if (strcmp(name, TERMINALS) != 0)
        return getenv(name);
    snprintf(buffer, PATH_MAX, "%d%d%d", isatty(0) != 0, isatty(1) != 0, isatty(2) != 0);
    return buffer;
}

bool locate_server(struct program *program) {
    char *folder = servers_folder();
    struct text key = {NULL, 0};
    if (folder == NULL || !append_key(&key, program))
        return false;
    struct text names = read_file(formatted("%s.env", stem_of(folder, program, &key)), SIZE_MAX);
    char current[PATH_MAX];
    for (char *name = names.data ? strtok(names.data, "\n") : NULL; name != NULL; name = strtok(NULL, "\n")) {
        const char *value = value_of(name, current);
        if (value == NULL && strcmp(name, WORKING_FOLDER) == 0)
            return false;
        append(&key, name, strlen(name));
        append(&key, "=", value != NULL);
        append_string(&key, value ? value : "");
    }
    char *stem = stem_of(folder, program, &key);
    program->key = key.data;
    program->key_size = key.size;
    program->socket = formatted("%s.sock", stem);
    program->stamps = formatted("%s.stamps", stem);
    return true;
}

/* -- stamps -------------------------------------------------------------------------------------------------------- */

static bool unchanged(const char *line) {
    char *size_text, *inode_text, *path;
    long long mtime = strtoll(line, &size_text, 10), size = strtoll(size_text, &inode_text, 10);
    unsigned long long inode = strtoull(inode_text, &path, 10);
    struct stat info;
    if (stat(path + 1, &info) < 0)
        return mtime == -1;
#ifdef __APPLE__
    struct timespec found = info.st_mtimespec;
#else
    struct timespec found = info.st_mtim;
#endif
    return mtime == (long long)found.tv_sec * 1000000000 + found.tv_nsec && size == (long long)info.st_size &&
           inode == (unsigned long long)info.st_ino;
}

const char *current_token(const struct program *program) {
    struct text file = read_file(program->stamps, SIZE_MAX);
    char *token, *end;
    if (file.data == NULL || !starts_with(file.data, FORMAT " "))
        return NULL;
    token = file.data + strlen(FORMAT " ");
    end = strchr(token, ' ');
    if (end == NULL)
        return NULL;
    *end = '\0';
    size_t size = strtoul(end + 1, &end, 10);
    if (*end != '\n' || size != program->key_size || (size_t)(file.data + file.size - end) < size + 2)
        return NULL;
    if (memcmp(end + 1, program->key, size) != 0)
        return NULL;
    for (char *line = end + size + 2, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next)
            *next++ = '\0';
        if (!unchanged(line))
            return NULL; /* the Python command says what has changed */
    }
    return token;
}
