# Contents: what keeps Python code from making types that only the core can make whole.

cdef void make() noexcept
cdef int check_maker(self) except -1
