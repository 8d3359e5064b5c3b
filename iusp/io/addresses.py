"""Web and S3 addresses."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")


def is_secure(address: str) -> bool:
    """Return whether a web address uses encryption or points to this machine."""
    try:
        parts = urlsplit(address)
        if parts.scheme != "http":
            return parts.scheme == "https"
        return parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
