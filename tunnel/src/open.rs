//! What a dialler asks of a gateway, and what it is told.
//!
//! The messages are protobufs (`api/proto/tunnel.proto`); here they become validated values and back. A peer's text
//! that breaks a limit is refused, not cut: whoever sends it has a bug that is better seen early.

use bytes::Bytes;
use hawser_api::proto::tunnel::{Answer, Open, Opened, answer};
use hawser_api::{Code, Refusal, ServicePort};
use prost::Message;

use crate::frame;

/// The protocol version that this code speaks.
pub const VERSION: u32 = 1;
/// Longest endpoint id, in bytes.
pub const ENDPOINT_MAX: usize = 64;
/// Most endpoint ids in `avoid`: more endpoints than that have never failed at once for one caller.
pub const AVOID_MAX: usize = 16;
/// Longest trace context, in bytes; the W3C form of version 00 has 55.
pub const TRACEPARENT_MAX: usize = 64;

/// A validated `Open`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// The exported service port.
    pub target: ServicePort,
    /// This endpoint or none.
    pub endpoint: Option<String>,
    /// Endpoint ids not to choose while there is any other; at most 16 of at most 64 bytes.
    pub avoid: Vec<String>,
    /// W3C trace context, or empty; at most 64 bytes.
    pub traceparent: String,
}

impl OpenRequest {
    /// Any endpoint of this service port.
    pub fn any(target: ServicePort) -> Self {
        Self { target, endpoint: None, avoid: Vec::new(), traceparent: String::new() }
    }

    /// As a frame for the gateway. What is over a limit here is our own mistake: a trace context is left out, of
    /// `avoid` the last ones count.
    pub fn to_frame(&self) -> Result<Bytes, Refusal> {
        let avoid = self.avoid.iter().rev().filter(|id| id.len() <= ENDPOINT_MAX).take(AVOID_MAX).cloned().collect();
        let open = Open {
            version: VERSION,
            namespace: self.target.service.namespace.to_string(),
            service: self.target.service.name.to_string(),
            port: u32::from(self.target.port),
            endpoint: self.endpoint.clone().unwrap_or_default(),
            avoid,
            traceparent: Some(&self.traceparent).filter(|t| t.len() <= TRACEPARENT_MAX).cloned().unwrap_or_default(),
        };
        frame::encode(&open.encode_to_vec()).map_err(|e| bad_request(e.to_string()))
    }

    /// From a dialler's frame.
    pub fn from_payload(payload: &[u8]) -> Result<Self, Refusal> {
        let open = Open::decode(payload).map_err(|e| bad_request(format!("the open message cannot be read: {e}")))?;
        if open.version < VERSION {
            return Err(Refusal::new(
                Code::Version,
                format!("the dialler speaks version {}, this gateway {VERSION}", open.version),
                "run the same release of hawser in both clusters",
            ));
        }
        let target = ServicePort::parse(&open.namespace, &open.service, open.port)
            .map_err(|e| bad_request(format!("the open message names no service port: {e}")))?;
        check_length("endpoint", &open.endpoint, ENDPOINT_MAX)?;
        check_length("traceparent", &open.traceparent, TRACEPARENT_MAX)?;
        if open.avoid.len() > AVOID_MAX {
            return Err(bad_request(format!("the open message avoids more than {AVOID_MAX} endpoints")));
        }
        for id in &open.avoid {
            check_length("avoid", id, ENDPOINT_MAX)?;
        }
        let endpoint = Some(open.endpoint).filter(|id| !id.is_empty());
        Ok(Self { target, endpoint, avoid: open.avoid, traceparent: open.traceparent })
    }
}

/// A gateway's yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedAnswer {
    /// Opaque id of the endpoint that was chosen; at most 64 bytes.
    pub endpoint: String,
    /// How many are ready behind this gateway.
    pub endpoints_ready: u32,
}

impl OpenedAnswer {
    /// As a frame for the dialler.
    pub fn to_frame(&self) -> Result<Bytes, frame::TooLong> {
        let opened =
            Opened { version: VERSION, endpoint: self.endpoint.clone(), endpoints_ready: self.endpoints_ready };
        frame::encode(&Answer { answer: Some(answer::Answer::Opened(opened)) }.encode_to_vec())
    }
}

/// A refusal as a frame for the dialler; its texts are cut to what the dialler takes.
pub fn refusal_frame(refusal: &Refusal) -> Result<Bytes, frame::TooLong> {
    let refused = Refusal::from_wire(&refusal.to_wire()).to_wire();
    frame::encode(&Answer { answer: Some(answer::Answer::Refused(refused)) }.encode_to_vec())
}

/// From a gateway's frame: its yes, or its refusal. What cannot be read is a refusal too.
pub fn read_answer(payload: &[u8]) -> Result<OpenedAnswer, Refusal> {
    let broken = |detail: String| {
        let remedy = "run the same release of hawser in both clusters";
        Refusal::new(Code::PeerUnreachable, format!("the gateway's answer cannot be read: {detail}"), remedy)
    };
    match Answer::decode(payload).map_err(|e| broken(e.to_string()))?.answer {
        Some(answer::Answer::Opened(opened)) if opened.version != VERSION => Err(Refusal::new(
            Code::Version,
            format!("the gateway answers in version {}, this dialler speaks {VERSION}", opened.version),
            "run the same release of hawser in both clusters",
        )),
        Some(answer::Answer::Opened(opened)) => {
            check_length("endpoint", &opened.endpoint, ENDPOINT_MAX).map_err(|e| broken(e.message))?;
            Ok(OpenedAnswer { endpoint: opened.endpoint, endpoints_ready: opened.endpoints_ready })
        }
        Some(answer::Answer::Refused(refused)) => Err(Refusal::from_wire(&refused)),
        None => Err(broken("it is neither opened nor refused".to_owned())),
    }
}

fn check_length(what: &str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.len() > most {
        return Err(bad_request(format!("{what} is longer than {most} bytes")));
    }
    Ok(())
}

fn bad_request(message: String) -> Refusal {
    Refusal::new(Code::BadRequest, message, "run the same release of hawser in both clusters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;

    fn payload(frame: Bytes) -> Bytes {
        frame::decode(&mut BytesMut::from(&frame[..])).unwrap().unwrap()
    }

    fn open() -> Open {
        Open { version: 1, namespace: "shop".into(), service: "checkout".into(), port: 80, ..Open::default() }
    }

    #[test]
    fn an_open_reads_back_as_it_was_written() {
        let request = OpenRequest {
            target: "shop/checkout:8080".parse().unwrap(),
            endpoint: Some("a1".into()),
            avoid: vec!["b2".into()],
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        };
        assert_eq!(OpenRequest::from_payload(&payload(request.to_frame().unwrap())), Ok(request));
    }

    #[test]
    fn answers_read_back_as_they_were_written() {
        let opened = OpenedAnswer { endpoint: "a1".into(), endpoints_ready: 3 };
        assert_eq!(read_answer(&payload(opened.to_frame().unwrap())), Ok(opened));
        let refusal = Refusal::new(Code::NotExported, "shop/checkout:80 is not exported to west", "export it")
            .retry_after(std::time::Duration::from_secs(2));
        assert_eq!(read_answer(&payload(refusal_frame(&refusal).unwrap())), Err(refusal));
    }

    #[test]
    fn an_open_over_any_limit_is_refused_with_a_code() {
        let long = |n: usize| "x".repeat(n);
        let cases = [
            (Open { version: 0, ..open() }, Code::Version),
            (Open { port: 0, ..open() }, Code::BadRequest),
            (Open { port: 65_536, ..open() }, Code::BadRequest),
            (Open { namespace: "Shop".into(), ..open() }, Code::BadRequest),
            (Open { service: "a.b".into(), ..open() }, Code::BadRequest),
            (Open { endpoint: long(65), ..open() }, Code::BadRequest),
            (Open { traceparent: long(65), ..open() }, Code::BadRequest),
            (Open { avoid: vec![long(1); 17], ..open() }, Code::BadRequest),
            (Open { avoid: vec![long(65)], ..open() }, Code::BadRequest),
        ];
        for (message, code) in cases {
            let refusal = OpenRequest::from_payload(&message.encode_to_vec()).unwrap_err();
            assert_eq!(refusal.code, code, "{message:?}");
            assert!(!refusal.remedy.is_empty());
        }
    }

    #[test]
    fn a_later_version_and_unknown_fields_are_accepted() {
        let mut bytes = Open { version: 9, ..open() }.encode_to_vec();
        bytes.extend_from_slice(&[0xf8, 0x07, 0x01]); // field 127, varint 1
        assert_eq!(OpenRequest::from_payload(&bytes).unwrap().target.to_string(), "shop/checkout:80");
    }

    #[test]
    fn an_answer_that_says_nothing_is_a_refusal() {
        assert_eq!(read_answer(&[]).unwrap_err().code, Code::PeerUnreachable);
        let later = Opened { version: 2, ..Opened::default() };
        let later = Answer { answer: Some(answer::Answer::Opened(later)) }.encode_to_vec();
        assert_eq!(read_answer(&later).unwrap_err().code, Code::Version);
    }

    #[test]
    fn a_refusal_with_huge_texts_still_fits_a_frame() {
        let refusal = Refusal::new(Code::Overloaded, "m".repeat(100_000), "r".repeat(100_000));
        assert!(refusal_frame(&refusal).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_give_a_value_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = OpenRequest::from_payload(&bytes);
            let _ = read_answer(&bytes);
        }
    }
}
