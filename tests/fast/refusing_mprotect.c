/* An mprotect that refuses from the REFUSE_FROM'th call on, counted from 1, as some systems refuse executable
 * pages. It counts the calls about the pages of HashX only. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { HASHX_PAGES_LEN = 16384 };

int mprotect(void *address, size_t length, int protection)
{
    static int calls;

    if (length == HASHX_PAGES_LEN && ++calls >= atoi(getenv("REFUSE_FROM"))) {
        errno = EACCES;
        return -1;
    }
    return (int)syscall(SYS_mprotect, address, length, protection);
}
