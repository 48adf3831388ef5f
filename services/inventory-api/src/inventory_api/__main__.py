"""`python -m inventory_api`."""

from inventory_api.main import main

raise SystemExit(main())
