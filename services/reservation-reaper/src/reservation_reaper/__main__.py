"""`python -m reservation_reaper`."""

from reservation_reaper.main import main

raise SystemExit(main())
