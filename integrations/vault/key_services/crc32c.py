"""The checksum that Google Cloud KMS compares: CRC-32C (RFC 3720, appendix B.4), for values of some hundred bytes."""

_POLYNOMIAL = 0x82F63B78


def _row(index: int) -> int:
    for _ in range(8):
        index = index >> 1 ^ (_POLYNOMIAL if index & 1 else 0)
    return index


_TABLE = [_row(index) for index in range(256)]


def crc32c(value: bytes) -> int:
    checksum = 0xFFFFFFFF
    for byte in value:
        checksum = checksum >> 8 ^ _TABLE[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF
