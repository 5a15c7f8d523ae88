//! Names and documents that users and peers write.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use hawser_api::bundle::Bundle;
use hawser_api::objects::load;
use hawser_api::proto::tunnel::Refused;
use hawser_api::refusal::TEXT_MAX;
use hawser_api::{ClusterName, Code, Namespace, Refusal, ServiceKey, ServiceName, ServicePort, SpiffeId, TrustDomain};
use prost::Message;

/// A bundle that is read is the same bundle when it is written and read again.
pub fn bundle(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(bundle) = Bundle::parse(text) else { return false };
    let document = bundle.to_document();
    let again = Bundle::parse(&document).expect("our own document");
    assert_eq!(again, bundle);
    assert_eq!(again.to_document(), document);
    true
}

/// What parses prints as it was written; names that have a canonical form print that, and it is canonical.
pub fn names(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut taken = same::<ClusterName>(text, text);
    taken |= same::<Namespace>(text, text);
    taken |= same::<ServiceName>(text, text);
    taken |= same::<ServiceKey>(text, text);
    taken |= same::<ServicePort>(text, text);
    taken |= same::<TrustDomain>(text, &text.to_ascii_lowercase());
    if let Ok(id) = text.parse::<SpiffeId>() {
        let path = id.path();
        let host = text.len() - path.len();
        taken |= same::<SpiffeId>(text, &format!("{}{path}", text[..host].to_ascii_lowercase()));
        assert_eq!(format!("{}{path}", id.trust_domain().id()), id.as_str());
    }
    taken
}

fn same<T>(text: &str, printed: &str) -> bool
where
    T: FromStr<Err = hawser_api::names::NameError> + Display + Debug + PartialEq,
{
    match text.parse::<T>() {
        Ok(value) => {
            assert_eq!(value.to_string(), printed);
            assert_eq!(printed.parse::<T>(), Ok(value));
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 1000, "a hostile name makes a long message");
            false
        }
    }
}

/// A peer's refusal is short, breaks no line, and says the same when it is passed on.
pub fn refusal(data: &[u8]) -> bool {
    let decoded = Refused::decode(data);
    let taken = decoded.is_ok();
    let refused = decoded.unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(data).into_owned();
        Refused { code: text.clone(), message: text.clone(), remedy: text, retry_after_ms: 1 }
    });
    let refusal = Refusal::from_wire(&refused);
    for text in [&refusal.message, &refusal.remedy] {
        assert!(text.chars().count() <= TEXT_MAX && !text.chars().any(char::is_control));
    }
    assert_eq!(refusal.body().lines().count(), 2);
    assert!(refusal.code == Code::PeerUnreachable || refusal.code.as_str() == refused.code);
    assert_eq!(Refusal::from_wire(&refusal.to_wire()), refusal);
    taken
}

/// Objects that load are the same when they are written and loaded again; problems name a line that exists.
pub fn objects(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match load::parse("fuzz.yaml", text) {
        Ok(objects) => {
            for located in &objects {
                assert!(located.line >= 1 && located.line <= lines(text), "line {}", located.line);
                let json = serde_json::to_string(&located.object).expect("objects can be written");
                let again = load::parse("again.yaml", &json).unwrap_or_else(|e| panic!("{json}: {e:?}"));
                assert_eq!(again.len(), 1);
                assert_eq!(again[0].object, located.object, "{json}");
            }
            !objects.is_empty()
        }
        Err(problems) => {
            assert!(!problems.is_empty() && problems.len() <= load::PROBLEMS_MAX);
            for problem in problems {
                assert!(problem.line <= lines(text), "{problem} of {} lines", lines(text));
                assert!(!problem.reason.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
                assert!(!problem.reason.chars().any(char::is_control), "{problem:?}");
            }
            false
        }
    }
}

/// YAML's line breaks are also carriage returns, and the end of the text is a place of its own.
fn lines(text: &str) -> u64 {
    text.bytes().filter(|b| matches!(b, b'\n' | b'\r')).count() as u64 + 1
}
