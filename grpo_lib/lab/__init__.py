"""The laboratory: exact enumeration, token X-ray, length bias."""
