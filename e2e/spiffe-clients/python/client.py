"""A workload that uses the PyPI package `spiffe` as it comes: one line for each certificate that it is given."""

import sys
import threading

from spiffe import WorkloadApiClient

with WorkloadApiClient() as client:
    if sys.argv[1] == "jwt":
        svid = client.fetch_jwt_svid(audience={"db"})
        checked = client.validate_jwt_svid(token=svid.token, audience="db")
        print("jwt", checked.spiffe_id, svid.token, flush=True)
        sys.exit()

    def given(context):
        svid = context.default_svid
        bundles = len(list(context.x509_bundle_set.bundles))
        print(f"serial {svid.leaf.serial_number:x} {svid.spiffe_id} bundles={bundles}", flush=True)

    def failed(error):
        print("watch:", error, file=sys.stderr, flush=True)

    client.stream_x509_contexts(given, failed)
    threading.Event().wait(180)
