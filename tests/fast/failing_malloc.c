/* Counts the allocations of one thread between resume() and pause(), and makes chosen ones fail.

   LD_PRELOADed into a Python of PYTHONMALLOC=malloc, so that it sees Python's, the core's and OpenSSL's; and
   imported there as a module, so that counting starts and stops without an allocation. */

#define _GNU_SOURCE
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void (*real_free)(void *);

static __thread int is_counting; /* this thread, now */
static long left = -1;           /* allocations until one fails; negative: none does */
static long counted;
static long failed;
static int is_lasting;           /* all that follow fail too, until pause() */

/* dlsym itself may allocate before it has told us where the real functions are. */
static char early[65536];
static size_t early_used;

static void *allocate_early(size_t size)
{
    void *block = early + early_used;
    early_used += (size + 15) & ~(size_t)15;
    if (early_used > sizeof early)
        abort();
    return block;
}

static int is_early(const void *block)
{
    return (const char *)block >= early && (const char *)block < early + sizeof early;
}

static void find_real(void)
{
    static int is_looking;
    if (real_free || is_looking)
        return;
    is_looking = 1;
    real_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    real_calloc = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "calloc");
    real_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
    real_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    is_looking = 0;
}

static int has_to_fail(void)
{
    if (!is_counting)
        return 0;
    counted++;
    if (left < 0 || left-- > 0)
        return 0;
    if (is_lasting)
        left = 0;
    failed++;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    find_real();
    if (!real_free)
        return allocate_early(size);
    return has_to_fail() ? NULL : real_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    find_real();
    if (!real_free)
        return allocate_early(count * size); /* static memory is zero */
    return has_to_fail() ? NULL : real_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    void *moved;
    find_real();
    if (is_early(block)) {
        moved = malloc(size);
        if (moved)
            memcpy(moved, block, size < (size_t)(early + sizeof early - (char *)block) ? size : (size_t)(early + sizeof early - (char *)block));
        return moved;
    }
    if (!real_free)
        return allocate_early(size);
    return has_to_fail() ? NULL : real_realloc(block, size);
}

void free(void *block)
{
    find_real();
    if (!is_early(block) && real_free)
        real_free(block);
}

static PyObject *set_fault(PyObject *self, PyObject *args)
{
    long number;
    int lasting;
    (void)self;
    if (!PyArg_ParseTuple(args, "lp", &number, &lasting))
        return NULL;
    left = number;
    is_lasting = lasting;
    counted = failed = 0;
    Py_RETURN_NONE;
}

static PyObject *resume(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    is_counting = 1;
    Py_RETURN_NONE;
}

static PyObject *pause_(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    is_counting = 0;
    if (is_lasting && failed)
        left = -1;
    Py_RETURN_NONE;
}

static PyObject *count(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return Py_BuildValue("ll", counted, failed);
}

static PyMethodDef methods[] = {
    {"set_fault", set_fault, METH_VARARGS, "Fail the allocation of this number, from 0; lasting: those after it too."},
    {"resume", resume, METH_NOARGS, "Count from here on."},
    {"pause", pause_, METH_NOARGS, "Count no more; what lasted is over."},
    {"count", count, METH_NOARGS, "How many were counted since set_fault, and how many failed."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "failing_malloc", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_failing_malloc(void)
{
    return PyModule_Create(&module);
}
