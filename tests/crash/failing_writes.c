/* Lets one call of this process to the system fail that writes a file beside checkpoints.

   Loaded before the C library (LD_PRELOAD), so that it stands between that and all who write: Python,
   and SQLite inside it. Built and armed by failing_writes.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define KILLED 9
#define SHORT -1 /* half of the bytes are written, and no error comes */

static char folder[4096], met[4200];
static long at = -1, count = 0;
static int error = 0, lasting = 0, armed = 0;

/* Begin to count. Of the calls that concern a file in `where`, but for those of checkpoints, the one
   with this number fails, from 0; and all after it if `lasts`. With `number` 0 the process ends there. */
void smt_arm(const char *where, long call, int number, int lasts) {
    snprintf(folder, sizeof folder, "%s", where);
    at = call, error = number, lasting = lasts, count = 0, met[0] = 0, armed = 1;
}

long smt_count(void) { return count; }

const char *smt_met(void) { return met; }

static int fails(int descriptor, const char *call) {
    char link[64], path[4096];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(folder);
    if (strncmp(path, folder, prefix) || !path[prefix] || strstr(path, "-step-") || strstr(path, "@probe"))
        return 0;
    long number = count++;
    if (at < 0 || number < at || (number > at && !lasting)) return 0;
    if (!met[0]) snprintf(met, sizeof met, "%s %s", call, path + strlen(folder));
    if (!error) _exit(KILLED);
    return 1;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL return errno = error, -1

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (fails(fd, "write")) {
        if (error == SHORT) return real(fd, data, size > 1 ? size / 2 : size);
        FAIL;
    }
    return real(fd, data, size);
}

#define PWRITE(name, offset_type)                                                       \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) {           \
        REAL(name);                                                                     \
        if (fails(fd, "pwrite")) {                                                      \
            if (error == SHORT) return real(fd, data, size > 1 ? size / 2 : size, offset); \
            FAIL;                                                                       \
        }                                                                               \
        return real(fd, data, size, offset);                                            \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SYNC(name)                                             \
    int name(int fd) {                                         \
        REAL(name);                                            \
        if (fails(fd, #name) && error != SHORT) FAIL;          \
        return real(fd);                                       \
    }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(name, offset_type)                            \
    int name(int fd, offset_type size) {                       \
        REAL(name);                                            \
        if (fails(fd, "ftruncate") && error != SHORT) FAIL;    \
        return real(fd, size);                                 \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define ALLOCATE(name, offset_type)                            \
    int name(int fd, offset_type from, offset_type size) {     \
        REAL(name);                                            \
        if (fails(fd, "fallocate") && error != SHORT) return error; \
        return real(fd, from, size);                           \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)
