"""What several test files share."""

import pytest

from gpumask.kernels import compiled

needs_compiled = pytest.mark.skipif(compiled.library is None, reason="gpumask was installed without a C compiler")
