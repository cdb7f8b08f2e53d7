"""
Sealing of credentials: envelope encryption, and the only code that uses ciphers.

A key-encryption key (KEK) outside the database wraps one data-encryption key (DEK) per organization,
and one for the platform; a key derived from the DEK for each record seals that record.
"""
