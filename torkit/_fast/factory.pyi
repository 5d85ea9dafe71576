"""Types that the core makes and fills: from Python, where they would be half made, they cannot be made."""

__pyx_capi__: dict[str, object]  # the functions of factory.pxd
