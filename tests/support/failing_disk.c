/* A disk that fails: preloaded into a process, it lets one write or sync on a file below a folder fail, or all from one
   on. Set with failing_disk(folder, n, error, stays); n counts from 1, 0 never fails. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long fails_at;
static int fails_with, fails_on;
static atomic_long operations;

void failing_disk(const char *under, long n, int error, int stays) {
    snprintf(folder, sizeof folder, "%s/", under);
    fails_at = n, fails_with = error, fails_on = stays;
    atomic_store(&operations, 0);
}

long failing_disk_operations(void) { return atomic_load(&operations); }

static int fails(int fd) {
    char name[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder))) return 0;
    long n = atomic_fetch_add(&operations, 1) + 1;
    if (!fails_at || (fails_on ? n < fails_at : n != fails_at)) return 0;
    errno = fails_with;
    return 1;
}

#define INTERPOSE(type, name, parameters, arguments)                            \
    type name parameters {                                                      \
        static type(*real) parameters;                                          \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);          \
        return fails(fd) ? -1 : real arguments;                                 \
    }

INTERPOSE(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n))
INTERPOSE(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
INTERPOSE(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at))
INTERPOSE(int, fsync, (int fd), (fd))
INTERPOSE(int, fdatasync, (int fd), (fd))
INTERPOSE(int, ftruncate, (int fd, off_t n), (fd, n))
INTERPOSE(int, ftruncate64, (int fd, off64_t n), (fd, n))
INTERPOSE(int, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
