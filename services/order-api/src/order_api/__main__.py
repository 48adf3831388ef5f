"""`python -m order_api`."""

from order_api.main import main

raise SystemExit(main())
