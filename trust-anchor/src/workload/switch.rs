//! Two gRPC services on one socket, told apart by the path: `/service/method` (gRPC over HTTP/2, "Requests").

use std::convert::Infallible;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

/// The first serves its own path, the second all others.
#[derive(Debug, Clone)]
pub(crate) struct Switch<A, B>(pub(crate) A, pub(crate) B);

impl<A, B> Service<Request<Body>> for Switch<A, B>
where
    A: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    B: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    A::Future: Send + 'static,
    B::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Generated services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let service = path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
        if service == Some(A::NAME) { Box::pin(self.0.call(request)) } else { Box::pin(self.1.call(request)) }
    }
}
