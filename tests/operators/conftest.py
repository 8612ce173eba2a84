"""Makes the S3 servers of tests.s3_servers known to the tests of operators."""

from tests.s3_servers import moto_server, rgw_server

__all__ = ["moto_server", "rgw_server"]
