//! What goes into a tunnel comes out of it, over both transports and in every way of ending.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a test's report")]

mod tunnel_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hawser_api::Code;
use hawser_api::objects::link::Transport;
use hawser_tunnel::open::OpenRequest;
use hawser_tunnel::splice::Ended;
use hawser_tunnel::stream::TunnelStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tunnel_support::{BOTH, Fabric, Seen, Upstream, path, pattern, request};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_transports_carry_megabytes_there_and_back_unchanged() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let upstream = Upstream::echo().await;
        let mut gateway = fabric.gateway(upstream.address).await;
        let opening = fabric.dialer().open(&path(gateway.address, transport), &request()).await.unwrap();
        assert_eq!(opening.transport, transport);
        assert_eq!((opening.opened.endpoint.as_str(), opening.opened.endpoints_ready), ("e1", 2));

        let sent = pattern(8 << 20);
        let (mut read, mut write) = tokio::io::split(opening.stream);
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
            write
        });
        let mut got = Vec::new();
        timeout(SOON, read.read_to_end(&mut got)).await.unwrap().unwrap();
        assert!(got == expected, "{transport:?}: {} bytes came back", got.len());
        writer.await.unwrap();
        let (ended, traffic) = gateway.saw_end().await;
        assert_eq!(ended, Ended::Finished);
        assert_eq!((traffic.sent(), traffic.received()), (8 << 20, 8 << 20));
    }
}

#[tokio::test]
async fn a_refusal_arrives_with_code_reason_remedy_and_delay() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let gateway = fabric.gateway("127.0.0.1:1".parse().unwrap()).await;
        let wanted = OpenRequest::any("shop/refused:80".parse().unwrap());
        let refusal = fabric.dialer().open(&path(gateway.address, transport), &wanted).await.unwrap_err();
        assert_eq!(refusal.code, Code::NotExported);
        assert_eq!(refusal.message, "shop/refused:80 is not exported to west");
        assert_eq!(refusal.remedy, "export it");
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn a_half_close_in_either_direction_leaves_the_other_open() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let (upstream, mut accepted) = Upstream::manual().await;
        let gateway = fabric.gateway(upstream.address).await;
        let dialer = fabric.dialer();
        for caller_first in [true, false] {
            let opening = dialer.open(&path(gateway.address, transport), &request()).await.unwrap();
            let mut near = opening.stream;
            let mut far = accepted.recv().await.unwrap();
            let mut got = Vec::new();
            if caller_first {
                near.write_all(b"ping").await.unwrap();
                near.shutdown().await.unwrap();
                timeout(SOON, far.read_to_end(&mut got)).await.unwrap().unwrap();
                assert_eq!(got, b"ping");
                got.clear();
                far.write_all(b"late answer").await.unwrap();
                far.shutdown().await.unwrap();
                timeout(SOON, near.read_to_end(&mut got)).await.unwrap().unwrap();
                assert_eq!(got, b"late answer");
            } else {
                far.write_all(b"hello first").await.unwrap();
                far.shutdown().await.unwrap();
                timeout(SOON, near.read_to_end(&mut got)).await.unwrap().unwrap();
                assert_eq!(got, b"hello first");
                got.clear();
                near.write_all(b"still talking").await.unwrap();
                near.shutdown().await.unwrap();
                timeout(SOON, far.read_to_end(&mut got)).await.unwrap().unwrap();
                assert_eq!(got, b"still talking");
            }
        }
    }
}

#[tokio::test]
async fn a_reset_by_the_upstream_reaches_the_caller_as_a_reset() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let (upstream, mut accepted) = Upstream::manual().await;
        let mut gateway = fabric.gateway(upstream.address).await;
        let dialer = fabric.dialer();
        let mut near = dialer.open(&path(gateway.address, transport), &request()).await.unwrap().stream;
        let far = accepted.recv().await.unwrap();
        far.set_zero_linger().unwrap();
        drop(far);
        let error = timeout(SOON, near.read(&mut [0; 16])).await.unwrap().expect_err("a reset, not an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{transport:?}");
        assert_eq!(gateway.saw_end().await.0, Ended::UpstreamReset);
    }
}

#[tokio::test]
async fn a_reset_by_the_caller_reaches_the_upstream_as_a_reset() {
    for transport in BOTH {
        for half_closed in [false, true] {
            let fabric = Fabric::new();
            let (upstream, mut accepted) = Upstream::manual().await;
            let mut gateway = fabric.gateway(upstream.address).await;
            let dialer = fabric.dialer();
            let mut near = dialer.open(&path(gateway.address, transport), &request()).await.unwrap().stream;
            let mut far = accepted.recv().await.unwrap();
            if half_closed {
                near.shutdown().await.unwrap();
                assert_eq!(timeout(SOON, far.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
            }
            near.reset();
            assert_eq!(gateway.saw_end().await.0, Ended::PeerReset, "{transport:?} {half_closed}");
            let error = timeout(SOON, write_until_it_fails(&mut far)).await.unwrap();
            assert!(
                matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe),
                "{transport:?} {half_closed}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn a_cut_resets_both_sides() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let (upstream, mut accepted) = Upstream::manual().await;
        let mut gateway = fabric.gateway(upstream.address).await;
        let dialer = fabric.dialer();
        let mut near = dialer.open(&path(gateway.address, transport), &request()).await.unwrap().stream;
        let mut far = accepted.recv().await.unwrap();
        near.write_all(b"x").await.unwrap();
        far.read_exact(&mut [0; 1]).await.unwrap();
        gateway.cut.cancel();
        timeout(SOON, near.read(&mut [0; 16])).await.unwrap().expect_err("a reset, not an end");
        let error = timeout(SOON, far.read(&mut [0; 16])).await.unwrap().expect_err("a reset, not an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(gateway.saw_end().await.0, Ended::Cut);
    }
}

async fn write_until_it_fails(to: &mut TcpStream) -> std::io::Error {
    loop {
        match to.write_all(b"anybody there?").await {
            Ok(()) => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(error) => return error,
        }
    }
}

/// No progress between two looks.
async fn until_it_stands_still(count: &AtomicUsize) -> usize {
    let mut before = usize::MAX;
    loop {
        let now = count.load(Ordering::Relaxed);
        if now == before {
            return now;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_up_and_loses_nothing() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let (upstream, mut accepted) = Upstream::manual().await;
        let gateway = fabric.gateway(upstream.address).await;
        let dialer = fabric.dialer();
        let near = dialer.open(&path(gateway.address, transport), &request()).await.unwrap().stream;
        let mut far = accepted.recv().await.unwrap();
        let total = 96 << 20;
        let (mut read, mut write) = tokio::io::split(near);
        let written = Arc::new(AtomicUsize::new(0));
        let counter = written.clone();
        let writer = tokio::spawn(async move {
            let block = pattern(1 << 20);
            for _ in 0..total >> 20 {
                write.write_all(&block).await.unwrap();
                counter.fetch_add(block.len(), Ordering::Relaxed);
            }
            write.shutdown().await.unwrap();
        });
        let stalled = timeout(SOON, until_it_stands_still(&written)).await.unwrap();
        assert!(stalled < total / 2, "{transport:?}: {stalled} of {total} bytes went nowhere");
        let block = pattern(1 << 20);
        let mut got = vec![0; 1 << 20];
        for _ in 0..total >> 20 {
            timeout(SOON, far.read_exact(&mut got)).await.unwrap().unwrap();
            assert!(got == block);
        }
        writer.await.unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn an_open_tells_the_gateway_all_that_was_asked() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let upstream = Upstream::echo().await;
        let mut gateway = fabric.gateway(upstream.address).await;
        let wanted = OpenRequest {
            endpoint: Some("e9".into()),
            avoid: vec!["e1".into()],
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            ..request()
        };
        let opening = fabric.dialer().open(&path(gateway.address, transport), &wanted).await.unwrap();
        assert_eq!(matches!(opening.stream, TunnelStream::Tcp { .. }), transport == Transport::Tcp);
        assert_eq!(gateway.saw(|seen| if let Seen::Open(request) = seen { Some(request) } else { None }).await, wanted);
    }
}
