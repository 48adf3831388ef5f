"""Prints the SHA-256 of the certificate that each HOST:PORT in the arguments serves, as JSON.

A test passes the source of this file to Python in a pod. The settings TLS_CERT_PATH, TLS_KEY_PATH and TLS_CA_PATH name
the pod's own certificate.
"""

import hashlib
import json
import os
import socket
import ssl
import sys

SECONDS = 10

context = ssl.create_default_context(cafile=os.environ["TLS_CA_PATH"])
context.load_cert_chain(os.environ["TLS_CERT_PATH"], os.environ["TLS_KEY_PATH"])
context.set_alpn_protocols(["h2"])
# The address is that of one pod, which no certificate contains.
context.check_hostname = False

served = {}
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), SECONDS) as connection,
        context.wrap_socket(connection) as secured,
    ):
        served[address] = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
print(json.dumps(served))
