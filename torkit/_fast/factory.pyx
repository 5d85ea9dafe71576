"""Types that the core makes and fills: from Python, where they would be half made, they cannot be made.

Who makes one calls `make` and then `X.__new__(X)`; `X.__cinit__` calls `check_maker`.
"""

cdef bint is_making = False


cdef void make() noexcept:
    """The next object is made by the core."""
    global is_making
    is_making = True


cdef int check_maker(self) except -1:
    """Raises TypeError unless `make` was called for this object."""
    global is_making
    if not is_making:
        raise TypeError(f"{type(self).__name__} cannot be made from Python")
    is_making = False
    return 0
