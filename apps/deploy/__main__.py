"""What a MONAI Application Package starts: the application of `monai_anon.integrations.deploy`."""

import sys

from monai_anon.integrations.deploy import main

if __name__ == "__main__":
    sys.exit(main())
