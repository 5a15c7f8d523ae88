"""A gRPC server and client on gRPC's C core, without generated code: what the tests call through Hawser.

  echo.py serve PORT           unary, server-streaming and bidirectional methods, and one that fails with a status
  echo.py call HOST:PORT       calls them all and checks every answer, the trailing metadata and the status
"""

import sys
from concurrent import futures

import grpc

SERVICE = "hawser.test.Echo"


def client_id(context):
    return dict(context.invocation_metadata()).get("x-hawser-client-id", "")


def unary(request, context):
    context.set_trailing_metadata((("seen-client-id", client_id(context)), ("length", str(len(request)))))
    return request


def stream(request, context):
    for part in range(100):
        yield request + str(part).encode()


def bidirectional(requests, context):
    for request in requests:
        yield request


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if server.add_insecure_port(f"127.0.0.1:{port}") != int(port):
        sys.exit(f"port {port} is taken")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def call(target):
    with grpc.insecure_channel(target) as channel:
        grpc.channel_ready_future(channel).result(timeout=20)
        big = b"x" * 1_000_000
        answer, rpc = channel.unary_unary(f"/{SERVICE}/Unary").with_call(big, timeout=20)
        assert answer == big, "the unary answer differs"
        trailers = dict(rpc.trailing_metadata())
        assert trailers["length"] == "1000000", trailers
        parts = list(channel.unary_stream(f"/{SERVICE}/Stream")(b"part", timeout=20))
        assert parts == [b"part" + str(n).encode() for n in range(100)], "the stream differs"
        sent = [str(n).encode() * 1000 for n in range(200)]
        back = list(channel.stream_stream(f"/{SERVICE}/Bidirectional")(iter(sent), timeout=20))
        assert back == sent, "the bidirectional stream differs"
        try:
            channel.unary_unary(f"/{SERVICE}/Fail")(b"", timeout=20)
            raise AssertionError("the failing method did not fail")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            assert error.details() == "as asked", error
        print("ok", trailers["seen-client-id"], flush=True)


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
