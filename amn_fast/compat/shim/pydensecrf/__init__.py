"""What `import pydensecrf` finds on the path that `amn-fast shim` sets, in a script's child processes too."""

from amn_fast.compat.pydensecrf import install

install()
