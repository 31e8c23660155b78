/* Makes the n-th writing system call on files under one folder fail, or the process die there.
 *
 * Loaded by LD_PRELOAD. `fault_arm(folder, at, kind, lasting)` is called through ctypes: from the `at`-th call on (from 1)
 * the call fails with ENOSPC (kind 1) or EIO (2), writes only half (3), or the process is killed before it (4) or after it
 * (5). With `lasting`, every later call fails as well, as on a full disk. `fault_count()` says how many calls there were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char watched[4096];
static int fault_at, fault_kind, fault_lasting, calls, hits;

void fault_arm(const char *folder, int at, int kind, int lasting) {
    strncpy(watched, folder, sizeof watched - 1);
    fault_at = at;
    fault_kind = kind;
    fault_lasting = lasting;
    calls = hits = 0;
}
int fault_count(void) { return calls; }
int fault_hits(void) { return hits; }

static int is_watched_path(const char *path) { return watched[0] && strstr(path, watched) != NULL; }
static int is_watched(int fd) {
    char link[64], path[4096];
    if (!watched[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_watched_path(path);
}
/* 0: do it; otherwise the kind of fault. */
static int due(int watched_call) {
    if (!watched_call) return 0;
    calls++;
    if (!fault_at || (fault_lasting ? calls < fault_at : calls != fault_at)) return 0;
    hits++;
    if (fault_kind == 4) raise(SIGKILL);
    errno = fault_kind == 1 ? ENOSPC : EIO;
    return fault_kind;
}
static ssize_t done(int kind, ssize_t result) {
    if (kind == 5) raise(SIGKILL);
    return result;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    int kind = due(is_watched(fd));
    if (kind == 1 || kind == 2) return -1;
    return done(kind, REAL(write)(fd, data, kind == 3 && size > 1 ? size / 2 : size));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    int kind = due(is_watched(fd));
    if (kind == 1 || kind == 2) return -1;
    return done(kind, REAL(pwrite)(fd, data, kind == 3 && size > 1 ? size / 2 : size, offset));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    int kind = due(is_watched(fd));
    if (kind == 1 || kind == 2) return -1;
    return done(kind, REAL(pwrite64)(fd, data, kind == 3 && size > 1 ? size / 2 : size, offset));
}
#define FAIL_OR(call) \
    do { \
        if (kind == 1 || kind == 2 || kind == 3) { errno = kind == 1 ? ENOSPC : EIO; return -1; } \
        return (int)done(kind, call); \
    } while (0)
int fsync(int fd) { int kind = due(is_watched(fd)); FAIL_OR(REAL(fsync)(fd)); }
int fdatasync(int fd) { int kind = due(is_watched(fd)); FAIL_OR(REAL(fdatasync)(fd)); }
int ftruncate(int fd, off_t size) { int kind = due(is_watched(fd)); FAIL_OR(REAL(ftruncate)(fd, size)); }
int ftruncate64(int fd, off64_t size) { int kind = due(is_watched(fd)); FAIL_OR(REAL(ftruncate64)(fd, size)); }
int rename(const char *from, const char *to) { int kind = due(is_watched_path(to)); FAIL_OR(REAL(rename)(from, to)); }
int mkdir(const char *path, mode_t mode) { int kind = due(is_watched_path(path)); FAIL_OR(REAL(mkdir)(path, mode)); }
/* Opening may make a file, which needs space too. */
int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int kind = due((flags & O_CREAT) && is_watched_path(path) && access(path, F_OK) != 0);
    FAIL_OR(REAL(open)(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int kind = due((flags & O_CREAT) && is_watched_path(path) && access(path, F_OK) != 0);
    FAIL_OR(REAL(open64)(path, flags, mode));
}
