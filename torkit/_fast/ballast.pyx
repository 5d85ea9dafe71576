"""Memory that is kept for the moment when the system has none left.

Python cannot go on where no allocation at all succeeds: to make a MemoryError takes memory, too, and CPython calls
itself without end then. So its allocators are asked through here: where the system has nothing, the ballast is
given back to it, and the allocation is tried once more. Who runs is told by `is_kept`, and takes on nothing new until
the system lets us have the ballast again. But for the first of its pages, which holds its length, it is address space
alone.
"""

from libc.stddef cimport size_t

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ
    int PROT_WRITE
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    void* MAP_FAILED
    void* mmap(void* address, size_t length, int protection, int flags, int descriptor, long offset)
    int munmap(void* address, size_t length)

cdef extern from "Python.h":
    ctypedef struct PyMemAllocatorEx:
        void* ctx
        void* (*malloc)(void* ctx, size_t size) noexcept nogil
        void* (*calloc)(void* ctx, size_t count, size_t size) noexcept nogil
        void* (*realloc)(void* ctx, void* block, size_t size) noexcept nogil
        void (*free)(void* ctx, void* block) noexcept nogil
    ctypedef struct PyObjectArenaAllocator:
        void* ctx
        void* (*alloc)(void* ctx, size_t size) noexcept nogil
        void (*free)(void* ctx, void* block, size_t size) noexcept nogil
    ctypedef enum PyMemAllocatorDomain:
        PYMEM_DOMAIN_RAW
    void PyMem_GetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx* allocator)
    void PyMem_SetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx* allocator)
    void PyObject_GetArenaAllocator(PyObjectArenaAllocator* allocator)
    void PyObject_SetArenaAllocator(PyObjectArenaAllocator* allocator)

cdef extern from *:
    """
    /* Any thread may allocate, with or without the GIL: whoever takes the block unmaps it. */
    static void *torkit_ballast;
    static void *torkit_take_ballast(void) { return __atomic_exchange_n(&torkit_ballast, NULL, __ATOMIC_ACQ_REL); }
    static void torkit_put_ballast(void *block) { __atomic_store_n(&torkit_ballast, block, __ATOMIC_RELEASE); }
    static int torkit_has_ballast(void) { return __atomic_load_n(&torkit_ballast, __ATOMIC_ACQUIRE) != NULL; }
    """
    void* torkit_take_ballast() noexcept nogil
    void torkit_put_ballast(void* block) noexcept nogil
    bint torkit_has_ballast() noexcept nogil

cdef enum:
    SMALLEST_SHARE = 8  # an eighth of the ballast is better than none

cdef size_t wanted = 0  # bytes; 0 where none is kept
cdef PyMemAllocatorEx raw
cdef PyObjectArenaAllocator arenas


def keep(size_t size):
    """Keep so many bytes, more than 0, from now on. Returns whether the system has let us have them."""
    global wanted
    cdef PyMemAllocatorEx own_raw
    cdef PyObjectArenaAllocator own_arenas
    if wanted == 0:
        PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &raw)
        PyObject_GetArenaAllocator(&arenas)
        own_raw = PyMemAllocatorEx(NULL, raw_malloc, raw_calloc, raw_realloc, raw_free)
        own_arenas = PyObjectArenaAllocator(NULL, arena_alloc, arena_free)
        PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &own_raw)
        PyObject_SetArenaAllocator(&own_arenas)
    wanted = size
    return is_kept()


def is_kept():
    """Returns whether the ballast is there, or an eighth of it at least; True where none is to be kept.

    Tries to have it back where it is gone.
    """
    cdef size_t size = wanted
    cdef void* block
    if size == 0 or torkit_has_ballast():
        return True
    while size >= wanted // SMALLEST_SHARE and size > 0:
        block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if block != MAP_FAILED:
            (<size_t*>block)[0] = size
            torkit_put_ballast(block)
            return True
        size //= 2
    return False


cdef bint give_up() noexcept nogil:
    """Give the ballast back to the system. Returns whether there was one."""
    cdef void* block = torkit_take_ballast()
    if block == NULL:
        return False
    munmap(block, (<size_t*>block)[0])
    return True


cdef void* raw_malloc(void* ctx, size_t size) noexcept nogil:
    cdef void* block = raw.malloc(raw.ctx, size)
    if block == NULL and give_up():
        block = raw.malloc(raw.ctx, size)
    return block


cdef void* raw_calloc(void* ctx, size_t count, size_t size) noexcept nogil:
    cdef void* block = raw.calloc(raw.ctx, count, size)
    if block == NULL and give_up():
        block = raw.calloc(raw.ctx, count, size)
    return block


cdef void* raw_realloc(void* ctx, void* block, size_t size) noexcept nogil:
    cdef void* resized = raw.realloc(raw.ctx, block, size)
    if resized == NULL and give_up():
        resized = raw.realloc(raw.ctx, block, size)
    return resized


cdef void raw_free(void* ctx, void* block) noexcept nogil:
    raw.free(raw.ctx, block)


cdef void* arena_alloc(void* ctx, size_t size) noexcept nogil:
    cdef void* block = arenas.alloc(arenas.ctx, size)
    if block == NULL and give_up():
        block = arenas.alloc(arenas.ctx, size)
    return block


cdef void arena_free(void* ctx, void* block, size_t size) noexcept nogil:
    arenas.free(arenas.ctx, block, size)
