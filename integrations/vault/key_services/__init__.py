"""
Key-encryption keys in a key service or a hardware module: one class for each, behind `KekProvider`.

A key never leaves its service; data keys are sent there to be wrapped and unwrapped. Each class binds the context of
a data key as the service's own associated data, and translates the service's answers into the vault's faults. Their
libraries are extras of the package, imported at the first use.
"""
