"""Jobs run inside the test process: what they import once must not belong to one test alone."""

# Its log handler keeps the stderr of the moment, which inside a test that captures it is closed soon after.
import ray.data  # noqa: F401
