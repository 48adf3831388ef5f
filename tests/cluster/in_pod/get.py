"""Gets the URL in the argument. Prints the status, the final URL and the text, as JSON.

A test passes the source of this file to Python in a pod.
"""

import json
import sys
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

SECONDS = 30

try:
    response = build_opener(ProxyHandler({})).open(sys.argv[1], timeout=SECONDS)
except HTTPError as error:
    response = error
with response:
    print(json.dumps([response.status, response.url, response.read().decode()]))
