// Faults at the n-th write of a process. It is loaded before libc (LD_PRELOAD); attack_arm starts it.
//
// An event is a call that changes a file or folder. COUNT only counts them. KILL and TERM send a
// signal at the n-th one; a write that is killed has written half of its bytes. FULL counts the
// events that need room on the disk, and lets them fail from the n-th one on.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, TERM, FULL };
static int mode = OFF;
static long at, count, room;  // room: those that need it

void attack_arm(int new_mode, long new_at) {
    at = new_at;
    count = room = 0;
    mode = new_mode;
}

long attack_count(void) { return count; }
long attack_room(void) { return room; }

// Counts an event. 1 if it is the one, or the disk is full for it.
static int hit(int needs_room) {
    long all = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    long needing = needs_room ? __atomic_add_fetch(&room, 1, __ATOMIC_SEQ_CST) : 0;
    return mode == FULL ? needing >= at : all == at;
}

static void strike(void) {
    if (mode == KILL) kill(getpid(), SIGKILL);
    if (mode == TERM) kill(getpid(), SIGTERM);
}

// Counts an event, and strikes if it is the one. 1 if the disk is full for it.
static int event(int needs_room) {
    if (!hit(needs_room)) return 0;
    strike();
    errno = ENOSPC;
    return mode == FULL;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                  \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                   \
        va_end(rest);                                                                             \
        if (mode != OFF && (flags & O_ACCMODE) != O_RDONLY && event(flags & O_CREAT)) return -1;  \
        return NEXT(name)(path, flags, bits);                                                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                              \
    int name(int folder, const char *path, int flags, ...) {                                      \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                   \
        va_end(rest);                                                                             \
        if (mode != OFF && (flags & O_ACCMODE) != O_RDONLY && event(flags & O_CREAT)) return -1;  \
        return NEXT(name)(folder, path, flags, bits);                                             \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t size) {
    if (mode == OFF || file <= 2 || !hit(1)) return NEXT(write)(file, bytes, size);
    if (mode == KILL) NEXT(write)(file, bytes, size / 2);
    strike();
    errno = ENOSPC;
    return mode == FULL ? -1 : NEXT(write)(file, bytes, size);
}

#define CALL(type, name, parameters, arguments, needs_room)                                       \
    type name parameters {                                                                        \
        if (mode != OFF && event(needs_room)) return -1;                                          \
        return NEXT(name) arguments;                                                              \
    }
CALL(ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), (f, b, n, o), 1)
CALL(ssize_t, pwrite64, (int f, const void *b, size_t n, off64_t o), (f, b, n, o), 1)
CALL(ssize_t, writev, (int f, const struct iovec *v, int n), (f, v, n), 1)
CALL(int, rename, (const char *a, const char *b), (a, b), 0)
CALL(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), 0)
CALL(int, mkdir, (const char *p, mode_t m), (p, m), 1)
CALL(int, mkdirat, (int d, const char *p, mode_t m), (d, p, m), 1)
CALL(int, unlink, (const char *p), (p), 0)
CALL(int, unlinkat, (int d, const char *p, int f), (d, p, f), 0)
CALL(int, rmdir, (const char *p), (p), 0)
CALL(int, fsync, (int f), (f), 0)
CALL(int, ftruncate64, (int f, off64_t n), (f, n), 0)
ssize_t sendfile(int, int, off_t *, size_t);
CALL(ssize_t, sendfile, (int a, int b, off_t *o, size_t n), (a, b, o, n), 1)
ssize_t sendfile64(int, int, off64_t *, size_t);
CALL(ssize_t, sendfile64, (int a, int b, off64_t *o, size_t n), (a, b, o, n), 1)
CALL(ssize_t, copy_file_range, (int a, off64_t *p, int b, off64_t *q, size_t n, unsigned f),
     (a, p, b, q, n, f), 1)
