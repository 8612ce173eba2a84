"""The command line of the jobs."""

import sys

from jobs.command_line.main import main

sys.exit(main(sys.argv[1:]))
