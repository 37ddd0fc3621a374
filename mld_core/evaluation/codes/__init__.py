"""What findings are called.

The six `categories`, the `notation` of error codes, the `Diagnosis` and its registry.

The diagnoses themselves stand with their task (`classification`, `detection`, `detection3d`).
"""
