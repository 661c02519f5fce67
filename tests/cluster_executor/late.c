// Preloaded library that hides the models below LATE_BELOW for LATE_SECONDS after their last change, except from the
// process that created them, like a shared file system that caches failed look-ups.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static __thread int inside;

static int own[4096][2]; // device and inode of files that this process created
static int owned;

static int late(int dir, const char *path) {
    const char *below = getenv("LATE_BELOW");
    if (!below || inside || !path) return 0;
    char whole[PATH_MAX], real[PATH_MAX];
    if (path[0] != '/') {
        if (dir != AT_FDCWD || !getcwd(whole, sizeof whole)) return 0;
        strncat(whole, "/", sizeof whole - strlen(whole) - 1);
        strncat(whole, path, sizeof whole - strlen(whole) - 1);
        path = whole;
    }
    inside = 1;
    int found = realpath(path, real) != NULL;
    inside = 0;
    if (!found || strncmp(real, below, strlen(below)) || strrchr(real, '/')[1] == '.') return 0;
    struct stat s;
    if (syscall(SYS_newfstatat, AT_FDCWD, real, &s, 0) || !S_ISREG(s.st_mode)) return 0;
    if (!strstr(real, "/models/") && !strstr(real, "/jobs/")) return 0;
    for (int i = 0; i < owned; i++)
        if (own[i][0] == (int)s.st_dev && own[i][1] == (int)s.st_ino) return 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double age = now.tv_sec - s.st_ctim.tv_sec + (now.tv_nsec - s.st_ctim.tv_nsec) / 1e9;
    // Jobs see a file later than Snakemake does.
    return age < atof(getenv("LATE_SECONDS")) * (getenv("SLURM_JOB_ID") ? 4 : 1);
}

#define NEXT(name)                                                                                                     \
    static __typeof__(&name) next;                                                                                     \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define HIDE(dir, path)                                                                                                \
    if (late(dir, path)) {                                                                                             \
        errno = ENOENT;                                                                                                \
        return -1;                                                                                                     \
    }

static int opened(int fd, int flags) {
    struct stat s;
    if (fd >= 0 && (flags & O_CREAT) && owned < 4096 && !syscall(SYS_fstat, fd, &s)) {
        own[owned][0] = (int)s.st_dev;
        own[owned++][1] = (int)s.st_ino;
    }
    return fd;
}

static int mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        int mode = mode_of(flags, rest);                                                                               \
        va_end(rest);                                                                                                  \
        NEXT(name);                                                                                                    \
        HIDE(AT_FDCWD, path) return opened(next(path, flags, mode), flags);                                            \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                                                   \
    int name(int dir, const char *path, int flags, ...) {                                                              \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        int mode = mode_of(flags, rest);                                                                               \
        va_end(rest);                                                                                                  \
        NEXT(name);                                                                                                    \
        HIDE(dir, path) return opened(next(dir, path, flags, mode), flags);                                            \
    }
OPENAT(openat)
OPENAT(openat64)
int stat(const char *path, struct stat *s) {
    NEXT(stat);
    HIDE(AT_FDCWD, path) return next(path, s);
}
int stat64(const char *path, struct stat64 *s) {
    NEXT(stat64);
    HIDE(AT_FDCWD, path) return next(path, s);
}
int lstat(const char *path, struct stat *s) {
    NEXT(lstat);
    HIDE(AT_FDCWD, path) return next(path, s);
}
int lstat64(const char *path, struct stat64 *s) {
    NEXT(lstat64);
    HIDE(AT_FDCWD, path) return next(path, s);
}
int fstatat(int d, const char *path, struct stat *s, int f) {
    NEXT(fstatat);
    HIDE(d, path) return next(d, path, s, f);
}
int fstatat64(int d, const char *path, struct stat64 *s, int f) {
    NEXT(fstatat64);
    HIDE(d, path) return next(d, path, s, f);
}
int access(const char *path, int mode) {
    NEXT(access);
    HIDE(AT_FDCWD, path) return next(path, mode);
}
int faccessat(int d, const char *path, int m, int f) {
    NEXT(faccessat);
    HIDE(d, path) return next(d, path, m, f);
}
int statx(int d, const char *restrict path, int f, unsigned m, struct statx *restrict s) {
    NEXT(statx);
    HIDE(d, path) return next(d, path, f, m, s);
}
