"""What pyhanko-certvalidator thinks of chains: a line of JSON in for each, a line `verdict reason` out."""
import asyncio
import base64
import datetime
import json
import logging
import sys

from asn1crypto import x509
from pyhanko_certvalidator import CertificateValidator, ValidationContext

logging.disable(logging.CRITICAL)


async def judge(case):
    chain = [base64.b64decode(text) for text in case["chain"]]
    certificates = [x509.Certificate.load(der, strict=True) for der in chain]
    anchors = [x509.Certificate.load(base64.b64decode(text), strict=True) for text in case["anchors"]]
    context = ValidationContext(
        trust_roots=anchors,
        other_certs=certificates[1:],
        moment=datetime.datetime.fromtimestamp(case["now"], datetime.timezone.utc),
        allow_fetching=False,
        revocation_mode="soft-fail",
        time_tolerance=datetime.timedelta(0),
    )
    validator = CertificateValidator(certificates[0], certificates[1:], validation_context=context)
    await validator.async_validate_usage(
        key_usage={"digital_signature"},
        extended_key_usage={"server_auth", "client_auth"},
        extended_optional=True,
    )


async def main():
    for line in sys.stdin:
        try:
            await judge(json.loads(line))
            print("accept -")
        except Exception as error:  # Whatever it is, the chain was not taken.
            print("refuse", type(error).__name__, str(error).replace("\n", " ")[:160])
        sys.stdout.flush()


asyncio.run(main())
